package systemd

import (
	"fmt"
	"slices"
	"strings"

	"ingot/internal/problem"
)

// maxName is the longest name of a unit, in bytes: UNIT_NAME_MAX of systemd.
const maxName = 255

// Suffixes are the types of units, with their dots (systemd.unit(5)).
func Suffixes() []string {
	return []string{".service", ".socket", ".target", ".device", ".mount", ".automount", ".swap", ".timer", ".path", ".slice", ".scope"}
}

// Suffix is the type of a unit, with its dot; "" where the name has none.
func Suffix(unit string) string {
	i := strings.LastIndexByte(unit, '.')
	if i < 0 || !slices.Contains(Suffixes(), unit[i:]) {
		return ""
	}
	return unit[i:]
}

// CheckName judges the name of a unit that is to run (systemd.unit(5)): NAME.service, NAME@INSTANCE.service.
func CheckName(unit string) error {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
	suffix := Suffix(unit)
	name := strings.TrimSuffix(unit, suffix)
	switch {
	case strings.Trim(unit, chars) != "" || unit == "":
		return fmt.Errorf("%q is not the name of a unit, such as nginx.service", unit)
	case len(unit) > maxName:
		return fmt.Errorf("%q is longer than a unit's name can be, %d bytes", unit, maxName)
	case suffix == "" && strings.Contains(unit, "."):
		last := unit[strings.LastIndexByte(unit, '.'):]
		return fmt.Errorf("%q does not end in a type of unit: %s%s", unit, strings.Join(Suffixes(), " "), problem.Hint(last, Suffixes()))
	case suffix == "":
		return fmt.Errorf("%q has no type: write %s.service", unit, unit)
	case name == "":
		return fmt.Errorf("%q has no name before its type", unit)
	case strings.HasSuffix(name, "@"):
		return fmt.Errorf("%q is a template, which does not run itself: write %s1%s for an instance", unit, name, suffix)
	case strings.HasPrefix(name, "@"):
		return fmt.Errorf("%q has no name before its @", unit)
	}
	return nil
}

// Template is the template of an instance: getty@tty1.service is of getty@.service; "" where
// the unit is no instance.
func Template(unit string) string {
	name, rest, ok := strings.Cut(unit, "@")
	suffix := Suffix(unit)
	if !ok || suffix == "" || rest == suffix {
		return ""
	}
	return name + "@" + suffix
}
