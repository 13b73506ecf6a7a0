package main

import (
	"fmt"
	"slices"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/rollback"
)

// destination is the generation that a rollback is to go to: the number that
// was asked for (0: the one before), or the newest but the present one that is
// of an image, whole.
func destination(list []rollback.Generation, req wire.Request) (int, error) {
	if req.ToRef == "" || len(list) == 0 {
		return req.To, nil
	}
	for _, g := range slices.Backward(list[:len(list)-1]) {
		if isOf(g, req) {
			return g.Number, nil
		}
	}
	return 0, fmt.Errorf("no generation that it keeps is of %s: %w", req.ToRef, rollback.ErrNoGeneration)
}

// isOf reports whether a generation is of the image that a request names.
func isOf(g rollback.Generation, req wire.Request) bool {
	if g.Within != "" {
		return false
	}
	return g.ImageID == req.ToImage || req.ToImage == digest.ID{} && g.Image == req.ToRef
}
