package main

import "testing"

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int64{
		"500k": 500_000, "10M": 10_000_000, "1.5MiB": 3 << 19, "2G": 2_000_000_000, "10MB/s": 10_000_000, "16k": 16_000,
		"500": 0, "15k": 0, "k": 0, "-1M": 0, "fast": 0, "99999999T": 0,
	} {
		got, err := parseRate(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}
