package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// family are names that differ in their last number alone.
type family struct {
	head, tail string
	width      int // of numbers with leading zeros, else 0; -1: a name without a number
}

// fold writes names as a NODES expression does, short: db,n[01-03,07].
func fold(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	numbers := map[family][]int{}
	var order []family
	for _, name := range names {
		f, n := familyOf(name, numbers)
		if numbers[f] == nil {
			order = append(order, f)
		}
		numbers[f] = append(numbers[f], n)
	}
	var parts []string
	for _, f := range order {
		list := numbers[f]
		slices.Sort(list)
		list = slices.Compact(list)
		switch {
		case f.width < 0:
			parts = append(parts, f.head)
		case len(list) == 1:
			parts = append(parts, fmt.Sprintf("%s%0*d%s", f.head, f.width, list[0], f.tail))
		default:
			parts = append(parts, f.head+"["+ranges(list, f.width)+"]"+f.tail)
		}
	}
	return strings.Join(parts, ",")
}

// familyOf splits a name; one like n10 belongs to n08 and n09 where these are known.
func familyOf(name string, known map[family][]int) (family, int) {
	end := strings.LastIndexAny(name, "0123456789") + 1
	start := end
	for start > 0 && name[start-1] >= '0' && name[start-1] <= '9' {
		start--
	}
	digits := name[start:end]
	n, err := strconv.Atoi(digits)
	if err != nil {
		return family{head: name, width: -1}, 0
	}
	f := family{head: name[:start], tail: name[end:], width: len(digits)}
	if digits[0] != '0' && known[f] == nil || digits == "0" {
		f.width = 0
	}
	return f, n
}

// ranges writes sorted numbers as 1-3,7.
func ranges(list []int, width int) string {
	var parts []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		part := fmt.Sprintf("%0*d", width, list[i])
		if j > i {
			part += fmt.Sprintf("-%0*d", width, list[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}
