package site

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ingot/internal/problem"
)

// Node returns the node of a name, or nil.
func (s *Site) Node(name string) *Node {
	if s.byName != nil {
		return s.byName[name]
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// NodeByMAC returns the node that has a card with this address, in any usual spelling, and
// the card; nil when there is none.
func (s *Site) NodeByMAC(mac string) (*Node, *NIC) {
	m, err := ParseMAC(mac)
	if err != nil {
		return nil, nil
	}
	if s.byMAC != nil {
		ref := s.byMAC[m]
		return ref.node, ref.nic
	}
	for _, n := range s.Nodes {
		for i := range n.NICs {
			if n.NICs[i].MAC == m {
				return n, &n.NICs[i]
			}
		}
	}
	return nil, nil
}

// index makes looking up by name and MAC independent of the number of nodes.
func (s *Site) index() {
	s.byName, s.byMAC = map[string]*Node{}, map[MAC]nicRef{}
	for _, n := range s.Nodes {
		s.byName[n.Name] = n
		for i := range n.NICs {
			s.byMAC[n.NICs[i].MAC] = nicRef{n, &n.NICs[i]}
		}
	}
}

type nicRef struct {
	node *Node
	nic  *NIC
}

// NodeBySerial returns the node with this serial number, or nil. Numbers that many boards
// share match nothing.
func (s *Site) NodeBySerial(serial string) *Node {
	serial = strings.TrimSpace(serial)
	if JunkSerial(serial) {
		return nil
	}
	for _, n := range s.Nodes {
		if n.Serial == serial {
			return n
		}
	}
	return nil
}

// NodeByUUID returns the node with this UUID, or nil. Junk UUIDs match nothing. Firmware
// disagrees about the byte order of the first three fields (RFC 4578 section 2.3 wants the
// wire's, SMBIOS 2.6 stores little-endian): both spellings match.
func (s *Site) NodeByUUID(uuid string) *Node {
	uuid = canonicalUUID(uuid)
	if JunkUUID(uuid) {
		return nil
	}
	swapped := swapUUID(uuid)
	for _, n := range s.Nodes {
		if n.UUID == uuid || n.UUID == swapped {
			return n
		}
	}
	return nil
}

// Match finds the node of a machine: by any of its MACs first, then by serial number, then
// by UUID. how says which of them decided: "mac", "serial", "uuid" or "".
func (s *Site) Match(macs []string, serial, uuid string) (n *Node, how string) {
	for _, m := range macs {
		if n, _ := s.NodeByMAC(m); n != nil {
			return n, "mac"
		}
	}
	if n := s.NodeBySerial(serial); n != nil {
		return n, "serial"
	}
	if n := s.NodeByUUID(uuid); n != nil {
		return n, "uuid"
	}
	return nil, ""
}

// junkUUIDs are what board makers forget to fill in.
func junkUUIDs() []string {
	return []string{
		"03000200-0400-0500-0006-000700080009", // AMI's default
		"00020003-0004-0005-0006-000700080009", // the same, other byte order
		"12345678-1234-5678-90ab-cddeefaabbcc",
		"01234567-8910-1112-1314-151617181920",
		"00112233-4455-6677-8899-aabbccddeeff",
		"4c4c4544-0000-2010-8020-80c04f202020", // Dell without a service tag
	}
}

// JunkUUID says whether a UUID cannot identify a machine: it is not one, all its bytes are
// the same, or it is known to be shared by many boards.
func JunkUUID(uuid string) bool {
	u := canonicalUUID(uuid)
	if u == "" {
		return true
	}
	hex := strings.ReplaceAll(u, "-", "")
	return sameBytes(hex) || slices.Contains(junkUUIDs(), u)
}

func sameBytes(hex string) bool {
	for i := 0; i < len(hex); i += 2 {
		if hex[i:i+2] != hex[:2] {
			return false
		}
	}
	return true
}

// canonicalUUID is the lower-case form with dashes, or empty for what is no UUID.
func canonicalUUID(s string) string {
	hex := strings.ToLower(strings.ReplaceAll(strings.Trim(strings.TrimSpace(s), "{}"), "-", ""))
	if len(hex) != 32 || strings.Trim(hex, "0123456789abcdef") != "" {
		return ""
	}
	return hex[:8] + "-" + hex[8:12] + "-" + hex[12:16] + "-" + hex[16:20] + "-" + hex[20:]
}

// swapUUID reverses the bytes of the first three fields.
func swapUUID(u string) string {
	return u[6:8] + u[4:6] + u[2:4] + u[0:2] + "-" + u[11:13] + u[9:11] + "-" + u[16:18] + u[14:16] + u[18:]
}

// JunkSerial says whether a serial number is a filler.
func JunkSerial(s string) bool {
	s = strings.ToLower(strings.TrimSpace(s))
	if strings.Trim(s, "0x-. ") == "" || strings.Trim(s, "f") == "" || strings.Trim(s, "1") == "" {
		return true
	}
	fillers := []string{"to be filled by o.e.m.", "default string", "system serial number", "none", "not specified",
		"not applicable", "n/a", "na", "empty", "unknown", "invalid", "serial", "o.e.m.", "oem", "123456789", "0123456789", "1234567890",
		"chassis serial number", "not available", "xxxxxxxxxx", "ssn12345678901234567"}
	return slices.Contains(fillers, s)
}

// NotFoundError lists the parts of a NODES expression that name nothing.
type NotFoundError struct {
	Expr    string
	Missing []string // what does not exist, each with a hint where there is one

	more int // nodes that do not exist, listed or not
}

// maxMissing is how many absent nodes are listed.
const maxMissing = 20

func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("select nodes %q: %s", e.Expr, strings.Join(e.Missing, "; "))
	if e.more > maxMissing {
		text += fmt.Sprintf("; and %d more", e.more-maxMissing)
	}
	return text
}

// InClass says whether a node is in a class by what is written about it: its list, DEFAULT,
// LAST and its own name. Classes that scripts add on the node are not known here.
func (n *Node) InClass(class string) bool {
	return class == "DEFAULT" || class == "LAST" || class == n.Name || slices.Contains(n.Classes, class)
}

// Select returns the nodes of a NODES expression in the site's order: names, ranges
// n[01-16] or n[1,3-5], classes @web (in any case when no class has exactly that name),
// all, joined by commas. What does not exist is a *NotFoundError, everything at once; a
// malformed expression is another error.
func (s *Site) Select(expr string) ([]*Node, error) {
	words, err := splitNodes(expr)
	if err != nil {
		return nil, fmt.Errorf("select nodes %q: %w", expr, err)
	}
	chosen := map[*Node]bool{}
	missing := &NotFoundError{Expr: expr}
	for _, w := range words {
		if err := s.pick(w, chosen, missing); err != nil {
			return nil, fmt.Errorf("select nodes %q: %w", expr, err)
		}
	}
	if len(missing.Missing) > 0 {
		return nil, missing
	}
	var out []*Node
	for _, n := range s.Nodes {
		if chosen[n] {
			out = append(out, n)
		}
	}
	return out, nil
}

// SelectInOrder is Select with the nodes in the order in which expr names them,
// those of a class or a range in that of the site.
func (s *Site) SelectInOrder(expr string) ([]*Node, error) {
	words, err := splitNodes(expr)
	if err != nil {
		return nil, fmt.Errorf("select nodes %q: %w", expr, err)
	}
	var out []*Node
	seen := map[*Node]bool{}
	for _, w := range words {
		nodes, err := s.Select(w)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			if !seen[n] {
				seen[n], out = true, append(out, n)
			}
		}
	}
	return out, nil
}

func (s *Site) pick(word string, chosen map[*Node]bool, missing *NotFoundError) error {
	if class, ok := strings.CutPrefix(word, "@"); ok {
		s.pickClass(class, chosen, missing)
		return nil
	}
	if word == "all" {
		for _, n := range s.Nodes {
			chosen[n] = true
		}
		if len(s.Nodes) == 0 {
			missing.Missing = append(missing.Missing, "the site has no nodes")
		}
		return nil
	}
	names, err := expand(word)
	if err != nil {
		return err
	}
	for _, name := range names {
		if n := s.Node(name); n != nil {
			chosen[n] = true
			continue
		}
		if missing.more++; missing.more <= maxMissing {
			missing.Missing = append(missing.Missing, fmt.Sprintf("no node %q%s", name, problem.Hint(name, s.names())))
		}
	}
	return nil
}

func (s *Site) pickClass(class string, chosen map[*Node]bool, missing *NotFoundError) {
	found := false
	for _, exact := range []bool{true, false} {
		for _, n := range s.Nodes {
			if n.InClass(class) || !exact && n.InClass(strings.ToUpper(class)) {
				chosen[n], found = true, true
			}
		}
		if found {
			return
		}
	}
	missing.Missing = append(missing.Missing, fmt.Sprintf("no node is in class %q%s", class, problem.Hint(class, s.classNames())))
}

func (s *Site) names() []string {
	var out []string
	for _, n := range s.Nodes {
		out = append(out, n.Name)
	}
	return out
}

func (s *Site) classNames() []string {
	var out []string
	for _, n := range s.Nodes {
		out = append(out, n.Classes...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// splitNodes splits at commas outside brackets.
func splitNodes(expr string) ([]string, error) {
	var words []string
	depth, start := 0, 0
	for i, r := range expr + "," {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case r == ',' && (depth == 0 || i == len(expr)):
			w := strings.TrimSpace(expr[start:i])
			if w == "" {
				return nil, fmt.Errorf("an empty name: give names, n[01-16], @class or all")
			}
			words = append(words, w)
			start = i + 1
		}
		if depth < 0 || depth > 1 {
			return nil, fmt.Errorf("brackets do not match")
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("brackets do not match")
	}
	return words, nil
}

// maxExpand bounds what one range may mean.
const maxExpand = 100_000

// expand n[01-03]x into its names; several brackets multiply.
func expand(word string) ([]string, error) {
	open := strings.IndexByte(word, '[')
	if open < 0 {
		return []string{word}, nil
	}
	end := strings.IndexByte(word, ']')
	head, inner, tail := word[:open], word[open+1:end], word[end+1:]
	tails, err := expand(tail)
	if err != nil {
		return nil, err
	}
	var out []string
	for part := range strings.SplitSeq(inner, ",") {
		numbers, err := expandRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if (len(out)+len(numbers))*len(tails) > maxExpand {
			return nil, fmt.Errorf("%q means more than %d names", word, maxExpand)
		}
		for _, n := range numbers {
			for _, t := range tails {
				out = append(out, head+n+t)
			}
		}
	}
	return out, nil
}

// expandRange expands 7 or 01-16; the width of the first number is kept.
func expandRange(part string) ([]string, error) {
	first, last, isRange := strings.Cut(part, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(last)
	if err1 != nil || err2 != nil || digits(first) != first || digits(last) != last || a > b {
		return nil, fmt.Errorf("%q is not a range such as 01-16", part)
	}
	if b-a >= maxExpand {
		return nil, fmt.Errorf("%q means more than %d names", part, maxExpand)
	}
	var out []string
	for i := a; i <= b; i++ {
		out = append(out, fmt.Sprintf("%0*d", len(first), i))
	}
	return out, nil
}
