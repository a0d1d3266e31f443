package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/build"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/jsonpath"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// tableAccept is what kubectl get sends.
	tableAccept   = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
	servingPath   = "/apis/serving.knative.dev/v1/namespaces/default/"
	corePath      = "/api/v1/namespaces/default/"
	onlyTable     = "application/json;as=Table;v=v1;g=meta.k8s.io"
	onlyMetadata  = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	onlyMetadatas = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
)

// fetch gets what a path has in the form that accept asks for.
func (c *cluster) fetch(path, accept string) (int, []byte) {
	c.t.Helper()
	resp := c.open(path, accept)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, b
}

func (c *cluster) open(path, accept string) *http.Response {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.api+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *cluster) decode(path, accept string, into any) {
	c.t.Helper()
	status, b := c.fetch(path, accept)
	if err := json.Unmarshal(b, into); err != nil || status != http.StatusOK {
		c.t.Fatalf("%s: %d %s, %v", path, status, b, err)
	}
}

func (c *cluster) table(path string) metav1.Table {
	c.t.Helper()
	var table metav1.Table
	c.decode(path, tableAccept, &table)
	if table.Kind != "Table" || table.APIVersion != "meta.k8s.io/v1" {
		c.t.Fatalf("%s: it is a %s %s", path, table.APIVersion, table.Kind)
	}
	return table
}

// post makes a secret or a config map.
func (c *cluster) post(resource, body string) {
	c.t.Helper()
	resp, err := http.Post(c.api+corePath+resource, "application/json", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		c.t.Fatalf("%s: %s", body, resp.Status)
	}
	var obj metav1.PartialObjectMetadata
	if err := json.Unmarshal([]byte(body), &obj); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		r, err := http.NewRequest(http.MethodDelete, c.api+corePath+resource+"/"+obj.Name, nil)
		if err != nil {
			c.t.Error(err)
			return
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			c.t.Error(err)
			return
		}
		resp.Body.Close()
	})
}

// show is a table as a test compares it: the names of the columns, and the rows.
func show(table metav1.Table) []string {
	var lines, names []string
	for _, col := range table.ColumnDefinitions {
		name := strings.ToUpper(col.Name)
		if col.Priority > 0 {
			name += "+"
		}
		names = append(names, name)
	}
	lines = append(lines, strings.Join(names, " | "))
	for _, row := range table.Rows {
		var cells []string
		for _, cell := range row.Cells {
			cells = append(cells, fmt.Sprint(cell))
		}
		lines = append(lines, strings.Join(cells, " | "))
	}
	return lines
}

func TestResourceTables(t *testing.T) {
	c := startCluster(t)
	current.Load().scaler.Registry().SetDomain(revisions.Domain{Host: "example.com", Scheme: "http"})
	c.create(ksvc("hello", "app:1"))
	c.ready("hello")
	c.post("secrets", `{"metadata": {"name": "db"}, "type": "Opaque", "stringData": {"user": "eve", "password": "hunter2"}}`)
	c.post("configmaps", `{"metadata": {"name": "conf"}, "data": {"a": "1"}, "binaryData": {"b": "/w=="}}`)
	c.wantAnswer("hello.example.com", "hello-00001")
	pod := c.fake.ids()[0]
	// Whatever is seconds old.
	young := cmp.Transformer("age", func(s string) string {
		cells := strings.Split(s, " | ")
		for i, cell := range cells {
			if d, err := time.ParseDuration(cell); err == nil && d < time.Minute {
				cells[i] = "AGE"
			}
		}
		return strings.Join(cells, " | ")
	})
	for path, want := range map[string][]string{
		servingPath + "services": {
			"NAME | URL | LATESTCREATED | LATESTREADY | READY | REASON", "hello | http://hello.example.com | hello-00001 | hello-00001 | True | <nil>",
		},
		servingPath + "configurations": {"NAME | LATESTCREATED | LATESTREADY | READY | REASON", "hello | hello-00001 | hello-00001 | True | <nil>"},
		servingPath + "routes":         {"NAME | URL | READY | REASON", "hello | http://hello.example.com | True | <nil>"},
		servingPath + "revisions": {
			"NAME | CONFIG NAME | GENERATION | READY | REASON | ACTUAL REPLICAS | DESIRED REPLICAS", "hello-00001 | hello | 1 | True | <nil> | 1 | 1",
		},
		corePath + "pods": {
			"NAME | READY | STATUS | RESTARTS | AGE | IP+ | NODE+ | NOMINATED NODE+ | READINESS GATES+",
			pod + " | 1/1 | Running | 0 | AGE | 127.0.0.1 | <none> | <none> | <none>",
		},
		corePath + "services": {
			"NAME | TYPE | CLUSTER-IP | EXTERNAL-IP | PORT(S) | AGE | SELECTOR+", "hello | ExternalName | <none> | hello.example.com | <none> | AGE | <none>",
		},
		corePath + "secrets":    {"NAME | TYPE | DATA | AGE", "db | Opaque | 2 | AGE"},
		corePath + "configmaps": {"NAME | DATA | AGE", "conf | 2 | AGE"},
		"/api/v1/namespaces":    {"NAME | STATUS | AGE", "default | Active | <unknown>"},
	} {
		list := c.table(path)
		if diff := cmp.Diff(want, show(list), young); diff != "" {
			t.Errorf("%s:\n%s", path, diff)
			continue
		}
		name := list.Rows[0].Cells[0].(string)
		one := c.table(path + "/" + name)
		if diff := cmp.Diff(want, show(one), young); diff != "" {
			t.Errorf("%s of that:\n%s", path, diff)
		}
		var obj metav1.PartialObjectMetadata
		c.decode(path+"/"+name, "", &obj)
		if one.ResourceVersion != obj.ResourceVersion {
			t.Errorf("%s: the version of %s is %q, not %q", path, name, one.ResourceVersion, obj.ResourceVersion)
		}
		if space := strings.HasSuffix(path, "namespaces"); space != (obj.Namespace == "") {
			t.Errorf("%s: %s is in the namespace %q", path, name, obj.Namespace)
		}
	}
	// kubectl get all has of Kubernetes' own what it has elsewhere.
	var known metav1.APIResourceList
	c.decode("/api/v1", "", &known)
	var all []string
	for _, r := range known.APIResources {
		if slices.Contains(r.Categories, "all") {
			all = append(all, r.Name)
		}
	}
	if !slices.Equal(all, []string{"pods", "services"}) {
		t.Errorf("all are %q", all)
	}
	if empty := c.table(servingPath + "services?labelSelector=none"); len(empty.ColumnDefinitions) != 6 || empty.Rows == nil || len(empty.Rows) > 0 {
		t.Errorf("nothing: %+v", empty)
	}
	if status, b := c.fetch(servingPath+"services/none", tableAccept); status != http.StatusNotFound || !bytes.Contains(b, []byte(`"kind":"Status"`)) {
		t.Errorf("a service that is not there: %d %s", status, b)
	}
}

// The columns are those of Knative's own CRDs, and have what these say.
func TestKnativeColumns(t *testing.T) {
	c := startCluster(t)
	current.Load().scaler.Registry().SetDomain(revisions.Domain{Host: "example.com", Scheme: "http"})
	c.create(ksvc("hello", "app:1"))
	c.ready("hello")
	c.create(ksvc("broken", "missing:1"))
	eventually(t, "the service has failed", func() bool { return c.service("broken").IsFailed() })
	dir, err := build.Import("knative.dev/serving/config/core/300-resources", ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"service", "configuration", "route", "revision"} {
		text, err := os.ReadFile(filepath.Join(dir.Dir, name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Names struct {
					Plural, Singular, Kind string
					Categories, ShortNames []string
				}
				Versions []struct {
					AdditionalPrinterColumns []struct {
						Name, Type, Format, JSONPath string
						Priority                     int32
					}
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		names := crd.Spec.Names
		var known metav1.APIResourceList
		c.decode("/apis/serving.knative.dev/v1", "", &known)
		if !slices.ContainsFunc(known.APIResources, func(r metav1.APIResource) bool {
			return r.Name == names.Plural && r.SingularName == names.Singular && r.Kind == names.Kind &&
				slices.Equal(r.ShortNames, names.ShortNames) && slices.Equal(r.Categories, names.Categories)
		}) {
			t.Errorf("%+v is not among %+v", names, known.APIResources)
		}
		table := c.table(servingPath + names.Plural)
		var list struct{ Items []any }
		c.decode(servingPath+names.Plural, "", &list)
		columns := crd.Spec.Versions[0].AdditionalPrinterColumns
		if len(columns) < 3 || len(table.ColumnDefinitions) != len(columns)+1 || len(list.Items) != 2 || len(table.Rows) != 2 {
			t.Fatalf("%s: columns %+v; want %+v; %d rows of %d objects", name, table.ColumnDefinitions, columns, len(table.Rows), len(list.Items))
		}
		for i, want := range columns {
			col := table.ColumnDefinitions[i+1]
			if col.Name != want.Name || col.Type != want.Type || col.Format != want.Format || col.Priority != want.Priority || !strings.HasSuffix(col.Description, ": "+want.JSONPath) {
				t.Errorf("%s: column %+v; want %+v", name, col, want)
			}
			path := jsonpath.New(want.Name).AllowMissingKeys(true)
			if err := path.Parse("{" + want.JSONPath + "}"); err != nil {
				t.Fatal(err)
			}
			for row, obj := range list.Items {
				found, err := path.FindResults(obj)
				if err != nil {
					t.Fatal(err)
				}
				var value any
				if len(found) > 0 && len(found[0]) > 0 {
					value = found[0][0].Interface()
				}
				if got := table.Rows[row].Cells[i+1]; got != value {
					t.Errorf("%s: %s of row %d is %v; want %v", name, want.Name, row, got, value)
				}
			}
		}
	}
	failed := show(c.table(servingPath + "revisions/broken-00001"))[1]
	if want := "broken-00001 | broken | 1 | False | ContainerMissing | 0 | 0"; failed != want {
		t.Errorf("a revision that has failed: %s; want %s", failed, want)
	}
}

func TestNegotiation(t *testing.T) {
	const other = "application/vnd.kubernetes.protobuf"
	type answer struct {
		as, version string
		ok          bool
	}
	plain, none := answer{ok: true}, answer{}
	table := answer{"Table", "meta.k8s.io/v1", true}
	for accept, want := range map[string]answer{
		"":                              plain,
		" ":                             plain,
		"*/*":                           plain,
		"application/*":                 plain,
		"application/json":              plain,
		other + ",application/json":     plain,
		"text/html, */*;q=0.8":          plain,
		"application/json;pretty=1":     plain,
		tableAccept:                     table,
		"application/json," + onlyTable: plain,
		other + ", */*," + onlyTable:    table,
		"application/json;q=0.5,":       plain,
		"application/json; as=Table; v=v1; g=meta.k8s.io , application/json": table,
		"application/json;as=Table;g=meta.k8s.io;v=v1beta1":                  {"Table", "meta.k8s.io/v1beta1", true},
		"application/json;q=0.9," + onlyTable + ";q=0.1":                     plain,
		"application/json;q=0.1," + onlyTable + ";q=0.9":                     table,
		onlyTable + ";q=0,application/json":                                  plain,
		"application/json;as=Tableau;v=v1;g=meta.k8s.io,application/json":    plain,
		"application/json;as=Table;v=v2;g=meta.k8s.io,application/json":      plain,
		"application/json;as=Table;v=v1;g=example.com," + onlyTable:          table,
		other + ";as=Table;v=v1;g=meta.k8s.io," + onlyTable:                  table,
		onlyMetadata:                        {"PartialObjectMetadata", "meta.k8s.io/v1", true},
		onlyMetadatas:                       none,
		onlyMetadatas + ",application/json": plain,
		"application/json;as=Tableau;v=v1;g=meta.k8s.io": none,
		"application/json;g=meta.k8s.io;v=v1":            none,
		"application/json;q=0":                           none,
		"application/yaml":                               none,
		other:                                            none,
		"text/*":                                         none,
		"nonsense":                                       none,
	} {
		var got answer
		if got.as, got.version, got.ok = negotiate(accept, asTable, asMetadata); got != want {
			t.Errorf("%q: %+v; want %+v", accept, got, want)
		}
	}
	c := startCluster(t)
	c.create(ksvc("hello", "app:1"))
	c.post("configmaps", `{"metadata": {"name": "conf"}}`)
	for _, path := range []string{
		servingPath + "services", servingPath + "services/hello", servingPath + "services?watch=1&timeoutSeconds=1", corePath + "pods", corePath + "configmaps/conf", "/api/v1/namespaces",
	} {
		code, b := c.fetch(path, "application/yaml")
		var s metav1.Status
		if err := json.Unmarshal(b, &s); err != nil || code != http.StatusNotAcceptable || s.Kind != "Status" || s.Code != http.StatusNotAcceptable ||
			s.Reason != metav1.StatusReasonNotAcceptable || !strings.Contains(s.Message, "application/json") {
			t.Errorf("%s: %d %s", path, code, b)
		}
		if strings.Contains(path, "watch") {
			continue
		}
		var obj metav1.TypeMeta
		if c.decode(path, "*/*", &obj); obj.Kind == "Table" || obj.Kind == "" {
			t.Errorf("%s: it is a %q", path, obj.Kind)
		}
	}
	// Metadata of one is not a list, and of a list not one.
	for path, accept := range map[string]string{servingPath + "services": onlyMetadata, servingPath + "services/hello": onlyMetadatas} {
		if code, b := c.fetch(path, accept); code != http.StatusNotAcceptable {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
}

func TestTableObjects(t *testing.T) {
	c := startCluster(t)
	c.create(ksvc("hello", "app:1"))
	c.post("secrets", `{"metadata": {"name": "db", "labels": {"team": "blue"}}, "stringData": {"password": "hunter2"}}`)
	type object struct {
		metav1.TypeMeta

		Metadata struct {
			Name, Namespace string
			Labels          map[string]string
		}
		Data map[string]string
	}
	var none, metadata object
	metadata.Kind, metadata.APIVersion = "PartialObjectMetadata", "meta.k8s.io/v1"
	metadata.Metadata.Name, metadata.Metadata.Namespace, metadata.Metadata.Labels = "db", "default", map[string]string{"team": "blue"}
	whole := metadata
	whole.Kind, whole.APIVersion, whole.Data = "Secret", "v1", map[string]string{"password": ""}
	for query, want := range map[string]object{"": metadata, "?includeObject=Metadata": metadata, "?includeObject=Object": whole, "?includeObject=None": none} {
		for _, path := range []string{corePath + "secrets" + query, corePath + "secrets/db" + query} {
			var got object
			if raw := c.table(path).Rows[0].Object.Raw; raw != nil {
				if err := json.Unmarshal(raw, &got); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s:\n%s", path, diff)
			}
			_, b := c.fetch(path, tableAccept)
			if bytes.Contains(b, []byte("hunter2")) || bytes.Contains(b, []byte("aHVudGVyMg")) {
				t.Errorf("%s: a secret is told: %s", path, b)
			}
		}
	}
	for _, path := range []string{servingPath + "services", servingPath + "services/hello", servingPath + "services?watch=1&timeoutSeconds=1", corePath + "pods"} {
		path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "includeObject=All"
		if code, b := c.fetch(path, tableAccept); code != http.StatusBadRequest || !bytes.Contains(b, []byte("includeObject")) {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
	// It is nothing to who wants no table.
	if code, _ := c.fetch(servingPath+"services?includeObject=All", ""); code != http.StatusOK {
		t.Errorf("without a table: %d", code)
	}
	if status, b := c.fetch(servingPath+"services", "application/json;as=Table;v=v1beta1;g=meta.k8s.io"); status != http.StatusOK ||
		!bytes.Contains(b, []byte(`{"kind":"Table","apiVersion":"meta.k8s.io/v1beta1"`)) ||
		!bytes.Contains(b, []byte(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1beta1"`)) {
		t.Errorf("v1beta1: %d %s", status, b)
	}
}

func TestTablePages(t *testing.T) {
	c := startCluster(t)
	for n := range 5 {
		c.create(ksvc(fmt.Sprintf("s%d", n), "app:1"))
	}
	var all servingv1.ServiceList
	c.decode(servingPath+"services", "", &all)
	var got, metas []string
	path := servingPath + "services?limit=2"
	for {
		table := c.table(path)
		for _, row := range table.Rows {
			got = append(got, row.Cells[0].(string))
		}
		rest := int64(-1)
		if table.RemainingItemCount != nil {
			rest = *table.RemainingItemCount
		}
		metas = append(metas, fmt.Sprint(len(table.Rows), rest, len(table.ColumnDefinitions), table.ResourceVersion >= all.ResourceVersion && all.ResourceVersion != ""))
		if table.Continue == "" {
			break
		}
		path = servingPath + "services?limit=2&continue=" + table.Continue
	}
	if diff := cmp.Diff([]string{"s0", "s1", "s2", "s3", "s4"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"2 3 6 true", "2 1 6 true", "1 -1 6 true"}, metas); diff != "" {
		t.Error(diff)
	}
}

func TestTableWatch(t *testing.T) {
	c := startCluster(t)
	c.create(ksvc("one", "app:1"))
	c.ready("one")
	resp := c.open(servingPath+"services?watch=1", tableAccept)
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	next := func() (string, metav1.Table) {
		t.Helper()
		var e struct {
			Type   string
			Object metav1.Table
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		row := e.Object.Rows[0]
		var obj metav1.PartialObjectMetadata
		if err := json.Unmarshal(row.Object.Raw, &obj); err != nil {
			t.Fatal(err)
		}
		if e.Object.Kind != "Table" || len(e.Object.Rows) != 1 || obj.Kind != "PartialObjectMetadata" || obj.Name != row.Cells[0] ||
			e.Object.ResourceVersion != obj.ResourceVersion || obj.ResourceVersion == "" {
			t.Errorf("%s %+v of %+v", e.Type, e.Object, obj)
		}
		return e.Type, e.Object
	}
	if what, table := next(); what != "ADDED" || len(table.ColumnDefinitions) != 6 || table.Rows[0].Cells[4] != "True" {
		t.Errorf("the first is %s %+v", what, table)
	}
	c.create(ksvc("two", "app:1"))
	if what, table := next(); what != "ADDED" || table.ColumnDefinitions != nil || table.Rows[0].Cells[0] != "two" {
		t.Errorf("the second is %s %+v", what, table)
	}
	if err := c.Services("default").Delete(t.Context(), "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for {
		what, table := next()
		if table.ColumnDefinitions != nil || table.Rows[0].Cells[0] != "two" {
			t.Errorf("%s %+v", what, table)
		}
		if what == "DELETED" {
			break
		}
	}
	// What cannot be watched says so, and is not taken for a watch.
	if code, b := c.fetch(corePath+"pods?watch=1", tableAccept); code != http.StatusMethodNotAllowed {
		t.Errorf("watching pods: %d %s", code, b)
	}
}

// client-go's metadata client sees objects without what they hold.
func TestMetadataClient(t *testing.T) {
	c := startCluster(t)
	svc := ksvc("hello", "app:1")
	svc.Labels = map[string]string{"team": "blue"}
	made := c.create(svc)
	c.post("secrets", `{"metadata": {"name": "db"}, "stringData": {"password": "hunter2"}}`)
	client, err := metadata.NewForConfig(&rest.Config{Host: c.api})
	if err != nil {
		t.Fatal(err)
	}
	services := client.Resource(servingv1.SchemeGroupVersion.WithResource("services")).Namespace("default")
	list, err := services.List(t.Context(), metav1.ListOptions{LabelSelector: "team=blue"})
	if err != nil || len(list.Items) != 1 || list.Items[0].UID != made.UID || list.ResourceVersion == "" {
		t.Errorf("list: %+v, %v", list, err)
	}
	one, err := services.Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil || one.UID != made.UID || one.Labels["team"] != "blue" {
		t.Errorf("get: %+v, %v", one, err)
	}
	if _, err := services.Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get none: %v", err)
	}
	w, err := services.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	e := <-w.ResultChan()
	if obj, ok := e.Object.(*metav1.PartialObjectMetadata); !ok || obj.UID != made.UID {
		t.Errorf("watch: %s %+v", e.Type, e.Object)
	}
	secrets := client.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).Namespace("default")
	if list, err := secrets.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "db" {
		t.Errorf("secrets: %+v, %v", list, err)
	}
	for path, accept := range map[string]string{corePath + "secrets": onlyMetadatas, corePath + "secrets/db": onlyMetadata, servingPath + "services/hello": onlyMetadata} {
		code, b := c.fetch(path, accept)
		var obj metav1.TypeMeta
		if err := json.Unmarshal(b, &obj); err != nil || obj.APIVersion != "meta.k8s.io/v1" || !strings.Contains(accept, "as="+obj.Kind+";") {
			t.Errorf("%s: it is a %s %s, %v", path, obj.APIVersion, obj.Kind, err)
		}
		if code != http.StatusOK || bytes.Contains(b, []byte(`"data"`)) || bytes.Contains(b, []byte(`"spec"`)) || !bytes.Contains(b, []byte(`"uid"`)) {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
}

// The states of instances, in the words of pods.
func TestPodStates(t *testing.T) {
	containers := []corev1.Container{{Name: "app"}, {Name: "proxy"}}
	for _, test := range []struct {
		instancepool.InstanceStatus

		want string
	}{
		{instancepool.InstanceStatus{State: instancepool.Starting}, "0/2 ContainerCreating 0 <unknown> <none>"},
		{instancepool.InstanceStatus{State: instancepool.Ready, PID: 7, Address: "10.63.0.2:8080"}, "2/2 Running 0 <unknown> 10.63.0.2"},
		{instancepool.InstanceStatus{State: instancepool.Suspect, PID: 7, Address: "10.63.0.2:8080"}, "0/2 Running 0 <unknown> 10.63.0.2"},
		{instancepool.InstanceStatus{State: instancepool.Unready, PID: 7, Address: "10.63.0.2:8080"}, "0/2 Running 0 <unknown> 10.63.0.2"},
		{instancepool.InstanceStatus{State: instancepool.Draining, PID: 7, Address: "[::1]:8080"}, "0/2 Terminating 0 <unknown> ::1"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: containers}}
		podState(pod, test.InstanceStatus)
		if got := strings.TrimSpace(fmt.Sprintln(podCells(pod)[:5]...)); got != test.want {
			t.Errorf("%s: %s; want %s", test.State, got, test.want)
		}
	}
}
