package rack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ingot/lab"
)

// image is the golden image of all tests, built once by TestMain and kept in
// the user's cache. The tag says what is in it.
const image = "debian:rack-2"

// sidesImage is that of the nodes with two sides: it has a database, and boot
// loaders: for Secure Boot, and systemd's. Only the long forms need it.
const sidesImage = "debian:sides-2"

// skipEnv tells the run inside the namespaces why there is no rack.
const skipEnv = "INGOT_RACK_SKIP"

// TestMain runs the tests inside a rack's namespaces: outside it only builds
// the golden image, for which Debian's mirror has to be reached.
func TestMain(m *testing.M) { os.Exit(main(m)) }

func main(m *testing.M) int {
	ctx := context.Background()
	for _, a := range os.Args {
		if a == "-test.short=true" {
			os.Setenv(skipEnv, "machines are not booted with -short")
			return m.Run()
		}
	}
	if !lab.Inside() {
		if why := prepare(ctx); why != nil {
			if os.Getenv("INGOT_NO_SKIP") != "" {
				fmt.Fprintln(os.Stderr, "rack:", why)
				return 1
			}
			os.Setenv(skipEnv, why.Error())
			return m.Run()
		}
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("ingot-rack-%d", os.Getppid()))
	if d := os.Getenv("INGOT_RACK_DIR"); d != "" {
		dir = d
	}
	os.Setenv("INGOT_RACK_DIR", dir)
	inside, err := lab.Enter(ctx, lab.Options{Dir: dir})
	var exit *lab.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.Code
	case err != nil:
		fmt.Fprintln(os.Stderr, "rack:", err)
		return 1
	case !inside:
		return 0
	}
	defer os.RemoveAll(installedDir())
	return m.Run()
}

// binary is the program under test, as `make` leaves it.
func binary() string {
	path, err := filepath.Abs("../../bin/ingot")
	if err != nil {
		return "bin/ingot"
	}
	return path
}

func goldenSite() string {
	base, err := os.UserCacheDir()
	if err != nil {
		base = "/var/cache"
	}
	return filepath.Join(base, "ingot", "rack", "site")
}

// prepare makes sure that machines can be run and that the golden image is there.
func prepare(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed for namespaces and taps")
	}
	if err := lab.Check(lab.BIOS, lab.UEFI); err != nil {
		return err
	}
	if _, err := os.Stat(binary()); err != nil {
		return fmt.Errorf("bin/ingot is not built: %w", err)
	}
	site := goldenSite()
	if _, err := os.Stat(site); err != nil {
		if err := os.MkdirAll(filepath.Dir(site), 0o755); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, binary(), "init", site).CombinedOutput(); err != nil {
			return fmt.Errorf("ingot init: %w: %s", err, out)
		}
	}
	if err := fetchDebs(ctx); err != nil {
		return err
	}
	images := [][2]string{{image, "busybox,rsync,btrfs-progs,procps"}}
	if long() {
		images = append(images, [2]string{sidesImage, "busybox,rsync,btrfs-progs,procps,redis-server,shim-signed,grub-efi-amd64-signed,systemd-boot-efi"})
	}
	for _, x := range images {
		if err := golden(ctx, site, x[0], x[1]); err != nil {
			return err
		}
	}
	return nil
}

// golden builds an image unless it is there.
func golden(ctx context.Context, site, ref, packages string) error {
	if exec.CommandContext(ctx, binary(), "image", "show", ref, "--site", site).Run() == nil {
		return nil
	}
	start := time.Now()
	out, err := exec.CommandContext(ctx, binary(), "image", "build", ref, "--debian", "bookworm", "--include", packages,
		"--hook", `rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale "$1"/usr/share/info`, "--site", site).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ingot image build: %w: %s", err, out)
	}
	fmt.Fprintf(os.Stderr, "rack: built the image %s in %s\n", ref, time.Since(start).Round(time.Second))
	return nil
}

// debDir keeps the packages that a test has apt install on a node, which has
// no mirror in reach: two without dependencies, of many files.
func debDir() string { return filepath.Join(filepath.Dir(goldenSite()), "debs") }

func fetchDebs(ctx context.Context) error {
	if found, err := filepath.Glob(filepath.Join(debDir(), "*.deb")); err != nil || len(found) == 2 {
		return err
	}
	if err := os.MkdirAll(debDir(), 0o755); err != nil {
		return err
	}
	var out []byte
	var err error
	for _, args := range [][]string{{"download", "manpages", "manpages-dev"}, {"update"}, {"download", "manpages", "manpages-dev"}} {
		c := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
		c.Dir = debDir()
		if out, err = c.CombinedOutput(); err == nil && args[0] == "download" {
			return nil
		}
	}
	return fmt.Errorf("download packages: %w: %s", err, out)
}

func debs(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(debDir(), "*.deb"))
	if err != nil || len(found) != 2 {
		t.Fatalf("packages to install: %v, %v", found, err)
	}
	return found
}
