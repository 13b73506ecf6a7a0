// Package slogx holds the keys that ingot's logs use, so that a line can be found again.
package slogx

import "log/slog"

// The keys of log attributes.
const (
	Node  = "node"
	MAC   = "mac"
	IP    = "ip"
	Image = "image"
	Gen   = "gen"
	Path  = "path"
	Bytes = "bytes"
	Dur   = "dur"
	Err   = "err"
	Task  = "task"
	Stage = "stage"
)

// Or returns l, or a logger that discards everything when l is nil.
func Or(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
