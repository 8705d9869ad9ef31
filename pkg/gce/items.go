package gce

import (
	"bytes"
	"encoding/json"
)

// itemsOf are a page's: a list, or, aggregated, by zone or region an object that has the
// list under the kind's name.
type itemsOf struct {
	kind kind
	all  []found
}

// UnmarshalJSON reads either.
func (i *itemsOf) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		return json.Unmarshal(data, &i.all)
	}
	var scopes map[string]map[string]json.RawMessage
	if err := json.Unmarshal(data, &scopes); err != nil {
		return err
	}
	for _, s := range scopes {
		if s[i.kind.name] == nil { // a warning that there are none
			continue
		}
		var some []found
		if err := json.Unmarshal(s[i.kind.name], &some); err != nil {
			return err
		}
		i.all = append(i.all, some...)
	}
	return nil
}
