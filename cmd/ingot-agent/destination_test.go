package main

import (
	"errors"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/rollback"
)

func TestDestination(t *testing.T) {
	one, two := digest.Of([]byte("1")), digest.Of([]byte("2"))
	list := []rollback.Generation{
		{Number: 2, Image: "web:1", ImageID: one},
		{Number: 3, Image: "web:2", ImageID: two},
		{Number: 4, Image: "web:stable", ImageID: one}, // the same under another name
		{Number: 6, Image: "web:1", ImageID: one, Within: "etc"},
		{Number: 7, Image: "web:2", ImageID: two},
	}
	for _, x := range []struct {
		req  wire.Request
		want int // -1: none
	}{
		{wire.Request{}, 0},
		{wire.Request{To: 3}, 3},
		{wire.Request{ToRef: "web:1", ToImage: one}, 4},
		{wire.Request{ToRef: "web:1"}, 2}, // the server does not know it any more
		{wire.Request{ToRef: "web:2", ToImage: two}, 3},
		{wire.Request{ToRef: "web:9"}, -1},
		{wire.Request{ToRef: "web:1", ToImage: digest.Of([]byte("another web:1"))}, -1},
	} {
		got, err := destination(list, x.req)
		if x.want < 0 {
			if !errors.Is(err, rollback.ErrNoGeneration) {
				t.Errorf("%+v: %d, %v", x.req, got, err)
			}
			continue
		}
		if err != nil || got != x.want {
			t.Errorf("%+v: %d, %v, want %d", x.req, got, err, x.want)
		}
	}
}
