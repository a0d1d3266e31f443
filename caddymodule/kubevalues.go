package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	kjson "sigs.k8s.io/json"

	"github.com/fairway-run/fairway/revisions"
)

// coreCodecs read what Kubernetes' own clients send, which is protobuf.
var coreCodecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic("caddymodule: Kubernetes' types: " + err.Error())
	}
	return serializer.NewCodecFactory(scheme)
}()

// values answers for secrets and config maps. The values of secrets are never
// in an answer: the keys have empty ones.
func (q kubeRequest) values(kind revisions.ValueKind) error {
	store := q.engine.values
	switch {
	case q.Method == http.MethodGet:
		all, err := q.stored(kind)
		if err != nil {
			return err
		}
		if kind == revisions.Secrets {
			items := make([]corev1.Secret, len(all))
			for i, o := range all {
				items[i] = *secretOf(o)
			}
			return coreList(q, "Secret", secretPrinter, items)
		}
		items := make([]corev1.ConfigMap, len(all))
		for i, o := range all {
			items[i] = *configMapOf(o)
		}
		return coreList(q, "ConfigMap", configMapPrinter, items)
	case q.Method == http.MethodPost && q.name == "", q.Method == http.MethodPut && q.name != "", q.Method == http.MethodPatch && q.name != "":
		return q.putValues(kind)
	case q.Method == http.MethodDelete && q.name != "":
		if err := store.Delete(kind, q.name); err != nil {
			return err
		}
		writeStatus(q.w, metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusOK, Details: &metav1.StatusDetails{Name: q.name, Kind: string(kind)}})
		return nil
	}
	return methodNotAllowed(q.Method, string(kind))
}

// stored returns the one that is asked for, or all.
func (q kubeRequest) stored(kind revisions.ValueKind) ([]*revisions.Object, error) {
	if q.name == "" {
		return q.engine.values.List(kind)
	}
	o, err := q.engine.values.Get(kind, q.name)
	return []*revisions.Object{o}, err
}

func (q kubeRequest) answer(kind revisions.ValueKind, status int, o *revisions.Object) error {
	if kind == revisions.Secrets {
		s := secretOf(o)
		s.Namespace = q.engine.namespace()
		writeJSON(q.w, status, s)
		return nil
	}
	m := configMapOf(o)
	m.Namespace = q.engine.namespace()
	writeJSON(q.w, status, m)
	return nil
}

// putValues creates or replaces an object.
func (q kubeRequest) putValues(kind revisions.ValueKind) error {
	b, err := q.body()
	if err != nil {
		return err
	}
	var o *revisions.Object
	if q.Method == http.MethodPatch {
		o, err = q.patchValues(kind, b)
	} else {
		o, err = decodeValues(kind, b)
	}
	if err != nil {
		return err
	}
	if q.name != "" && o.Name != q.name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", o.Name, q.name))
	}
	create, status := q.Method == http.MethodPost, http.StatusOK
	if create {
		o.Version, status = "", http.StatusCreated
	}
	now, err := q.engine.values.Put(kind, o, create)
	if err != nil {
		return err
	}
	return q.answer(kind, status, now)
}

// patchValues applies a patch to what an object really holds, which clients do
// not see of secrets.
func (q kubeRequest) patchValues(kind revisions.ValueKind, b []byte) (*revisions.Object, error) {
	now, err := q.engine.values.Get(kind, q.name)
	if err != nil {
		return nil, err
	}
	var obj metav1.Object
	if kind == revisions.Secrets {
		s := secretOf(now)
		s.Data = now.Data
		obj = s
	} else {
		obj = configMapOf(now)
	}
	whole, err := q.patch(obj, b)
	if err != nil {
		return nil, err
	}
	return decodeValues(kind, whole)
}

// decodeValues reads a secret or a config map, in JSON or protobuf.
func decodeValues(kind revisions.ValueKind, b []byte) (*revisions.Object, error) {
	var secret corev1.Secret
	var config corev1.ConfigMap
	var into runtime.Object = &secret
	if kind == revisions.ConfigMaps {
		into = &config
	}
	if bytes.HasPrefix(b, protobufMagic) {
		if _, _, err := coreCodecs.UniversalDeserializer().Decode(b, nil, into); err != nil {
			return nil, apierrors.NewBadRequest("decoding the object: " + err.Error())
		}
	} else {
		strict, err := kjson.UnmarshalStrict(b, into)
		if err != nil {
			return nil, apierrors.NewBadRequest("decoding the object: " + redact(err))
		}
		if len(strict) > 0 {
			return nil, apierrors.NewBadRequest("strict decoding error: " + strict[0].Error())
		}
		if k := into.GetObjectKind().GroupVersionKind(); k.Kind != "" && k.Kind != kindOf(kind) {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the object is a %s, not a %s", k.Kind, kindOf(kind)))
		}
	}
	meta, data, immutable := &secret.ObjectMeta, secret.Data, secret.Immutable
	if kind == revisions.ConfigMaps {
		meta, data, immutable = &config.ObjectMeta, maps.Clone(config.BinaryData), config.Immutable
	}
	if data == nil {
		data = make(map[string][]byte)
	}
	for k, v := range secret.StringData {
		data[k] = []byte(v)
	}
	for k, v := range config.Data {
		data[k] = []byte(v)
	}
	if meta.Name == "" && meta.GenerateName != "" {
		meta.Name = meta.GenerateName + utilrand.String(5)
	}
	return &revisions.Object{
		Name: meta.Name, Data: data, Version: meta.ResourceVersion,
		Meta: revisions.ObjectMeta{
			Labels: meta.Labels, Annotations: meta.Annotations, Type: string(secret.Type), Immutable: immutable != nil && *immutable,
		},
	}, nil
}

// redact keeps what a client sent out of an error: it may be a secret.
func redact(err error) string {
	if syntax, ok := err.(*json.SyntaxError); ok { //nolint:errorlint // it is never wrapped
		return fmt.Sprintf("it is no JSON, at byte %d", syntax.Offset)
	}
	return "a field has a value of the wrong type: values of data are in base64, those of stringData plain strings"
}

func kindOf(kind revisions.ValueKind) string {
	if kind == revisions.Secrets {
		return "Secret"
	}
	return "ConfigMap"
}

func valuesMeta(o *revisions.Object) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Name: o.Name, UID: types.UID(o.Meta.UID), ResourceVersion: o.Version, Labels: o.Meta.Labels, Annotations: maps.Clone(o.Meta.Annotations),
		CreationTimestamp: metav1.NewTime(o.Meta.Created),
	}
	// kubectl apply keeps a copy of everything there.
	delete(m.Annotations, corev1.LastAppliedConfigAnnotation)
	return m
}

func secretOf(o *revisions.Object) *corev1.Secret {
	s := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: valuesMeta(o), Type: corev1.SecretType(o.Meta.Type)}
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
	s.Data = make(map[string][]byte, len(o.Data))
	for k := range o.Data {
		s.Data[k] = []byte{}
	}
	if o.Meta.Immutable {
		s.Immutable = &o.Meta.Immutable
	}
	return s
}

func configMapOf(o *revisions.Object) *corev1.ConfigMap {
	m := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: valuesMeta(o), Data: make(map[string]string, len(o.Data))}
	for k, v := range o.Data {
		if isText(v) {
			m.Data[k] = string(v)
			continue
		}
		if m.BinaryData == nil {
			m.BinaryData = make(map[string][]byte)
		}
		m.BinaryData[k] = v
	}
	if o.Meta.Immutable {
		m.Immutable = &o.Meta.Immutable
	}
	return m
}

func isText(b []byte) bool { return bytes.Equal(bytes.ToValidUTF8(b, nil), b) }
