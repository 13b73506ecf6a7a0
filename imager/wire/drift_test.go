package wire

import "testing"

func TestPathText(t *testing.T) {
	for path, want := range map[string]string{"etc/motd": "etc/motd", "a\nb": "a\nb", "\xff": `"\xff"`, `"quoted"`: `"\"quoted\""`, "ä": "ä"} {
		if got := PathText(path); got != want || PathOf(got) != path {
			t.Errorf("%q becomes %q and %q", path, got, PathOf(got))
		}
	}
}
