package templates

import (
	"bytes"
	"fmt"

	"ingot/internal/problem"
)

// Substitute replaces {%NAME%} in a file of the config space whose directory holds a file
// _substitute. Undefined variables are a problem.List with every place; name is for it.
// Anything else between {% and %} stays as it is.
func Substitute(name string, data []byte, vars map[string]string) ([]byte, error) {
	src := &problem.Source{Name: name, Data: data}
	var probs problem.List
	var out bytes.Buffer
	rest, done := data, 0
	for {
		i := bytes.Index(rest, []byte("{%"))
		if i < 0 {
			break
		}
		end := bytes.Index(rest[i:], []byte("%}"))
		if end < 0 {
			break
		}
		variable := string(rest[i+2 : i+end])
		if !isVariable(variable) {
			out.Write(rest[:i+2])
			rest, done = rest[i+2:], done+i+2
			continue
		}
		value, ok := vars[variable]
		if !ok {
			line := 1 + bytes.Count(data[:done+i], []byte("\n"))
			col := done + i - (bytes.LastIndexByte(data[:done+i], '\n') + 1) + 1
			probs.Add(src.At(line, col, "%s", undefined(variable, vars)))
		}
		out.Write(rest[:i])
		out.WriteString(value)
		rest, done = rest[i+end+2:], done+i+end+2
	}
	if err := probs.Err(); err != nil {
		return nil, err
	}
	out.Write(rest)
	return out.Bytes(), nil
}

func undefined(name string, vars map[string]string) string {
	var known []string
	for k := range vars {
		known = append(known, k)
	}
	return fmt.Sprintf("{%%%s%%}: no class and no node defines this variable%s", name, problem.Hint(name, known))
}

func isVariable(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
