package classes

import (
	"fmt"
	"strings"

	"ingot/internal/hooks"
	"ingot/internal/strict"
)

// checkHooks judges what one file, or all together, say about taking a node out
// of service and back.
func (p *Profile) checkHooks(d *strict.Decoded) {
	for key, list := range map[string][]hooks.Step{"drain": p.Drain, "undrain": p.Undrain} {
		for i, s := range list {
			path := fmt.Sprintf("%s[%d]", key, i)
			for _, f := range s.Faults() {
				d.Bad(strings.TrimSuffix(path+"."+f.Key, "."), "%s", f.Text)
			}
			for _, key := range []string{"timeout", "http.expect"} {
				notZero(d, path+"."+key)
			}
		}
	}
}

// pairHooks judges what all files say together: what is taken out of service
// comes back.
func (p *Profile) pairHooks(d *strict.Decoded) {
	said := d.Has("undrain") && d.At("undrain").Kind == strict.List // an empty list is a word, too
	if len(p.Drain) > 0 && !said {
		d.Bad("drain", "drain: without undrain:, which takes the node back into service; undrain: [] where nothing has to be done")
	}
	if len(p.Undrain) > 0 && len(p.Drain) == 0 {
		d.Bad("undrain", "undrain: without drain:, after which it is done")
	}
}
