package classes

import (
	"fmt"
	"strings"
	"time"

	"ingot/internal/strict"
	"ingot/internal/units"
)

// checkAfter judges what a profile says about the time after a push: checks and restarts.
func (p *Profile) checkAfter(d *strict.Decoded) {
	for i, c := range p.Check {
		path := fmt.Sprintf("check[%d]", i)
		for _, f := range c.Faults() {
			d.Bad(strings.TrimSuffix(path+"."+f.Key, "."), "%s", f.Text)
		}
		for _, key := range []string{"timeout", "retry_for", "status"} {
			notZero(d, path+"."+key)
		}
	}
	for i, e := range p.RestartExcept {
		if err := units.CheckPattern(e); err != nil {
			d.Bad(fmt.Sprintf("restart_except[%d]", i), "%v", err)
		}
	}
}

// notZero refuses a nought that is written out where leaving the key away means something else.
func notZero(d *strict.Decoded, path string) {
	if !d.Has(path) {
		return
	}
	if v, err := time.ParseDuration(d.At(path).Text); err == nil && v == 0 { // a number, too, when it is 0
		d.Bad(path, "must be more than 0")
	}
}
