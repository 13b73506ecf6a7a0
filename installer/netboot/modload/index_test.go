package modload

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func sample() *Index {
	return &Index{
		Kernel:  "6.1.0-56-amd64",
		Builtin: []string{"fuse", "virtio"},
		Modules: []Module{
			{Name: "net_failover", File: "kernel/net/net_failover.ko"},
			{Name: "virtio_net", File: "kernel/drivers/net/virtio_net.ko", Depends: []string{"net_failover"},
				Pre: []string{"a"}, Post: []string{"b", "c"}, Aliases: []string{"virtio:d00000001v*", "x y"}},
		},
	}
}

func TestIndexRoundTrip(t *testing.T) {
	x := sample()
	got, err := Decode(x.Encode())
	if err != nil || !reflect.DeepEqual(got, x) {
		t.Fatalf("Decode(Encode) = %+v, %v", got, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, text := range []string{
		"", "ingot-modules 2\n", "ingot-modules 1\nalias x\n", "ingot-modules 1\nmodule a\n", "ingot-modules 1\nmodule a /etc/x.ko\n",
		"ingot-modules 1\nmodule a x/../../b.ko\n", "ingot-modules 1\nmodule a b\nwhat x\n", "ingot-modules 1\nkernel\n",
	} {
		if x, err := Decode([]byte(text)); err == nil {
			t.Errorf("Decode(%q) = %+v, want an error", text, x)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sample().Encode())
	f.Add([]byte("ingot-modules 1\nmodule a b\npre \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Decode(b)
		if err != nil {
			return
		}
		y, err := Decode(x.Encode())
		if err != nil || string(y.Encode()) != string(x.Encode()) {
			t.Fatalf("not stable: %+v, %+v, %v", x, y, err)
		}
	})
}

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"virtio:d00000001v*", "virtio:d00000002v00001AF4", false},
		{"pci:v00008086d0000100Esv*sd*bc*sc*i*", "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", true},
		{"pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv1sd2bc01sc06i01", true},
		{"pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv1sd2bc01sc06i02", false},
		{"cpu:type:x86,ven*fam*mod*:feature:*0094*", "cpu:type:x86,ven0000fam0006mod0006:feature:,0000,0094,00A1", true},
		{"usb:v0781p000[1-3]d*", "usb:v0781p0002d0100", true},
		{"usb:v0781p000[1-3]d*", "usb:v0781p0004d0100", false},
		{"usb:[AF]x", "usb:Fx", true},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"dmi:*/x*", "dmi:a/b/x", true},
		{"[", "[", true},
		{"", "", true},
		{"", "a", false},
		{"***", "", true},
		{"*a*b", "xaxxb", true},
		{"*a*b", "xaxxbc", false},
	}
	for _, tt := range tests {
		if got := glob(tt.pattern, tt.s); got != tt.want {
			t.Errorf("glob(%q, %q) = %v", tt.pattern, tt.s, got)
		}
	}
}

// TestGlobTime: a pattern of many stars must not take exponential time.
func TestGlobTime(t *testing.T) {
	if glob(strings.Repeat("*a", 40)+"b", strings.Repeat("a", 5000)) {
		t.Fatal("matched")
	}
}

func order(t *testing.T, x *Index, names ...string) []string {
	t.Helper()
	steps, err := newTable(x).plan(names...)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range steps {
		for _, a := range s.after {
			if !slices.Contains(got, a) {
				t.Errorf("%s waits for %s, which is not before it: a deadlock", s.mod.Name, a)
			}
		}
		got = append(got, s.mod.Name)
	}
	return got
}

func TestPlan(t *testing.T) {
	mod := func(name string, deps, pre, post string) Module {
		return Module{Name: name, File: name + ".ko", Depends: strings.Fields(deps), Pre: strings.Fields(pre), Post: strings.Fields(post)}
	}
	tests := []struct {
		name string
		mods []Module
		want string
		of   []string
	}{
		{"chain", []Module{mod("a", "b", "", ""), mod("b", "c", "", ""), mod("c", "", "", "")}, "c b a", []string{"a"}},
		{"built in", []Module{mod("a", "inside", "", "")}, "a", []string{"a", "inside"}},
		{"dashes", []Module{mod("a_b", "", "", "")}, "a_b", []string{"a-b"}},
		{"soft", []Module{mod("a", "", "p gone", "q"), mod("p", "", "", ""), mod("q", "", "", "")}, "p a q", []string{"a"}},
		{"soft cycle", []Module{mod("a", "", "b", ""), mod("b", "", "a", "")}, "b a", []string{"a"}},
		{"soft that needs hard what waits", []Module{mod("a", "", "b", ""), mod("b", "a", "", "")}, "a b", []string{"a", "b"}},
		{"the same through another", []Module{mod("a", "", "b", ""), mod("b", "c", "", ""), mod("c", "a", "", "")}, "a", []string{"a"}},
		{"hard cycle of a broken index", []Module{mod("a", "b", "", ""), mod("b", "a", "", "")}, "b a", []string{"a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(order(t, &Index{Builtin: []string{"inside"}, Modules: tt.mods}, tt.of...), " ")
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if _, err := newTable(&Index{Modules: []Module{mod("a", "gone", "", "")}}).plan("a"); err == nil || !strings.Contains(err.Error(), `"a" needs: kernel module "gone": no such`) {
		t.Errorf("a missing dependency: %v", err)
	}
}
