package cluster

import (
	"encoding/json"
	"reflect"
	"strings"
)

// Schema is the JSON Schema (draft 2020-12) of the cluster file, for editors. It
// is made of the same types that the file is read into, so the two agree on
// every field; relations between fields are found by kimage cluster check only.
func Schema(s Support) ([]byte, error) {
	root := schemaOf(reflect.TypeFor[Cluster](), s, "")
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "kimage cluster file"
	root["required"] = []string{"apiVersion", "kind", "metadata", "spec"}
	data, err := json.MarshalIndent(root, "", "  ")
	return append(data, '\n'), err
}

type schema = map[string]any

func schemaOf(t reflect.Type, s Support, path string) schema {
	switch t {
	case reflect.TypeFor[Block]():
		return schemaOf(reflect.TypeFor[Machine](), s, "machine")
	case reflect.TypeFor[Reserved]():
		return schema{"maxProperties": 0, "maxItems": 0, "type": []string{"object", "array", "null"}}
	case reflect.TypeFor[Object]():
		return schema{"type": []string{"object", "null"}}
	case reflect.TypeFor[Strings]():
		return schema{"anyOf": []schema{{"type": "string"}, {"type": "array", "items": schema{"type": "string"}}, {"type": "null"}}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem(), s, path)
	case reflect.Struct:
		properties := schema{}
		for i := range t.NumField() {
			f := t.Field(i)
			name := f.Tag.Get("yaml")
			at := strings.TrimPrefix(path+"."+name, ".")
			p := schemaOf(f.Type, s, at)
			if doc := f.Tag.Get("doc"); doc != "" {
				p["description"] = doc
			}
			if values := enum(at, s); values != nil {
				p["enum"] = values
			}
			properties[name] = p
		}
		return schema{"type": []string{"object", "null"}, "properties": properties, "additionalProperties": false}
	case reflect.Map:
		return schema{"type": []string{"object", "null"}, "additionalProperties": schemaOf(t.Elem(), s, path)}
	case reflect.Slice:
		return schema{"type": []string{"array", "null"}, "items": schemaOf(t.Elem(), s, path+"[]")}
	case reflect.Int:
		return schema{"type": []string{"integer", "null"}}
	case reflect.Bool:
		return schema{"type": []string{"boolean", "null"}}
	}
	// What looks like a number or a truth value to YAML is a text where one is wanted.
	return schema{"type": []string{"string", "number", "boolean", "null"}}
}

// enum lists what a field may hold; nil: anything.
func enum(path string, s Support) []string {
	switch path {
	case "apiVersion":
		return []string{APIVersion}
	case "kind":
		return []string{Kind}
	case "spec.os":
		var all []string
		for _, o := range s.OSes {
			all = append(append(all, o.Name), o.Aliases...)
		}
		return all
	case "spec.runtime":
		return s.Runtimes
	case "spec.network.plugin":
		return s.Plugins
	case "machine.disks.install.overwrite":
		return overwrites
	case "machine.taints[].effect":
		return []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}
	}
	return nil
}
