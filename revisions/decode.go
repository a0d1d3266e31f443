package revisions

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxDecodeError is how many bytes of an error are kept: it may quote the file.
const maxDecodeError = 2000

// DecodeServices reads Knative services, one per YAML document, as they are
// written: without defaults, see Prepare. Documents that say nothing do not
// count; b may consist of them. JSON is YAML too.
//
// What Kubernetes would not take is refused: a field that is unknown or there
// twice, a value of the wrong type, or anything that is not a Service of
// serving.knative.dev/v1. So are two services of one name, and more than 1 MiB.
// The error is one line that begins with name, such as
//
//	hello.yaml: document 2: unknown field "spec.template.spec.containers[0].imagee"
func DecodeServices(name string, b []byte) ([]*servingv1.Service, error) {
	return decodeServices(name, b, func(svc *servingv1.Service) (*servingv1.Service, error) { return svc, nil })
}

// prepareServices is DecodeServices and Prepare, with errors of the same shape.
func prepareServices(name string, b []byte) ([]*servingv1.Service, error) {
	return decodeServices(name, b, Prepare)
}

func decodeServices(name string, b []byte, then func(*servingv1.Service) (*servingv1.Service, error)) ([]*servingv1.Service, error) {
	if len(b) > maxServiceFile {
		return nil, oneLine(name, errors.New("it is larger than 1 MiB"))
	}
	var services []*servingv1.Service
	first := make(map[string]int)
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return services, nil
		}
		where := fmt.Sprintf("%s: document %d", name, n)
		if err != nil {
			return nil, oneLine(where, err)
		}
		svc, err := decodeDocument(doc)
		if err == nil && svc == nil {
			continue
		}
		if err == nil {
			svc, err = then(svc)
		}
		if err != nil {
			return nil, oneLine(where, err)
		}
		if before := first[svc.Name]; before > 0 {
			return nil, oneLine(where, fmt.Errorf("service %s is in document %d already", svc.Name, before))
		}
		first[svc.Name] = n
		services = append(services, svc)
	}
}

// decodeDocument reads one document; nil means that it says nothing.
func decodeDocument(doc []byte) (*servingv1.Service, error) {
	js := bytes.TrimSpace(doc)
	if !json.Valid(js) { // YAML does not know all of JSON's escapes
		var err error
		if js, err = yaml.YAMLToJSONStrict(doc); err != nil {
			return nil, err
		}
	}
	if bytes.Equal(js, []byte("null")) {
		return nil, nil
	}
	var t metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(js, &t); err != nil {
		return nil, err
	}
	if t.APIVersion != servingv1.SchemeGroupVersion.String() || t.Kind != "Service" {
		return nil, fmt.Errorf("it is apiVersion %q, kind %q, and must be %q, %q", t.APIVersion, t.Kind, servingv1.SchemeGroupVersion, "Service")
	}
	svc := new(servingv1.Service)
	strict, err := kjson.UnmarshalStrict(js, svc)
	if err != nil {
		return nil, err
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	if svc.Name == "" {
		return nil, errors.New("missing field(s): metadata.name")
	}
	return svc, nil
}

// oneLine returns an error that shows as one line whatever is in it.
func oneLine(where string, err error) error {
	what := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	line := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, where+": "+strings.ReplaceAll(what, "\n", "; "))
	if len(line) > maxDecodeError {
		line = strings.ToValidUTF8(line[:maxDecodeError], "") + " …"
	}
	return errors.New(line)
}
