package lab

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestConsole(log *bytes.Buffer, failed *[]string) *console {
	return newConsole("n1", DefaultFailOn(), log, func(saw string) { *failed = append(*failed, saw) })
}

func TestConsoleLines(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"lines", "one\ntwo\r\n\r\n  three \n", "one|two|  three"},
		{"no end", "login: ", "login:"},
		{"colours", "\x1b[1;31mred\x1b[0m\x1b(B plain\n", "red plain"},
		{"a painted screen", "\x1b[2J\x1b[01;01HBdsDxe: a\x1b[02;01Hb", "BdsDxe: a|b"},
		{"a title", "\x1b]0;title\x07text\n", "text"},
		{"backspace", "abx\b\b\b\b\bc\n", "c"},
		{"noise", "a\x00\x07\x7fb\tc\n", "ab c"},
		{"cut escape", "x\x1b[", "x"},
		{"long", strings.Repeat("y", 5000), strings.Repeat("y", 4096) + "|" + strings.Repeat("y", 904)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, step := range []int{1, 3, len(tt.in)} { // however it arrives
				var log bytes.Buffer
				var failed []string
				c := newTestConsole(&log, &failed)
				for in := tt.in; in != ""; in = in[min(step, len(in)):] {
					c.Write([]byte(in[:min(step, len(in))]))
				}
				c.close()
				var got []string
				for _, l := range c.all() {
					got = append(got, l.Text)
				}
				if strings.Join(got, "|") != tt.want || len(failed) > 0 {
					t.Errorf("in steps of %d: %q, failed %q", step, got, failed)
				}
				if !regexp.MustCompile(`^(\[ +\d+\.\d{3}\] .*\n)+$`).Match(log.Bytes()) {
					t.Errorf("log: %q", &log)
				}
			}
		})
	}
}

func TestConsoleFails(t *testing.T) {
	for _, text := range []string{"No bootable device.\n", "\x1b[3;3HUiApp", "grub> ", "(initramfs) ", "[ 1.0] Kernel panic - not syncing: x\n"} {
		var log bytes.Buffer
		var failed []string
		c := newTestConsole(&log, &failed)
		c.Write([]byte("before\n" + text))
		_, err := c.expect(t.Context(), "never")
		var e *ConsoleError
		if !errors.As(err, &e) || len(e.Tail) == 0 || e.Tail[0].Text != "before" || !strings.Contains(err.Error(), "before") || len(failed) != 1 {
			t.Errorf("%q: %v, told %q", text, err, failed)
		}
		if _, err := c.expect(t.Context(), "before"); err != nil {
			t.Errorf("what came before the failure is not found: %v", err)
		}
	}
}

// TestExpect: texts are found in their order, in lines that have not ended too, and waiting ends with the
// text, the power or the context.
func TestExpect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var failed []string
		c := newTestConsole(&log, &failed)
		go func() {
			time.Sleep(2 * time.Second)
			c.Write([]byte("boot 1\nboot 2 login: "))
			time.Sleep(3 * time.Second)
			c.Write([]byte("root\nlogin: "))
			time.Sleep(time.Second)
			c.close()
		}()
		for _, step := range []struct {
			text string
			at   time.Duration
		}{{"boot", 2 * time.Second}, {"boot", 2 * time.Second}, {"login: ", 2 * time.Second}, {"root", 2 * time.Second}, {"login:", 5 * time.Second}} {
			l, err := c.expect(t.Context(), step.text)
			if err != nil || !strings.Contains(l.Text, step.text) || l.At != step.at {
				t.Fatalf("%q: %v, %v", step.text, l, err)
			}
		}
		var e *ConsoleError
		if _, err := c.expect(t.Context(), "boot"); !errors.As(err, &e) || !strings.Contains(e.Saw, "power off") {
			t.Errorf("after the power: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var failed []string
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := newTestConsole(&log, &failed).expect(ctx, "x")
		var e *ConsoleError
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("a\x1b[2J\x1b]0;x\x07b\r\n\b\bgrub>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var log bytes.Buffer
		var failed []string
		c := newTestConsole(&log, &failed)
		c.Write(b)
		c.find("x")
		c.Write(b)
		c.find("y")
		c.close()
		for _, l := range c.all() {
			if l.Text == "" || strings.ContainsAny(l.Text, "\x1b\n\r\x00") {
				t.Errorf("line %q", l.Text)
			}
		}
	})
}
