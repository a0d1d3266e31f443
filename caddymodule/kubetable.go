package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/munnerz/goautoneg"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metatable "k8s.io/apimachinery/pkg/api/meta/table"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// What clients may want instead of objects. Source: Kubernetes API, "Alternate
// representations of resources".
const (
	asTable        = "Table"
	asMetadata     = "PartialObjectMetadata"
	asMetadataList = "PartialObjectMetadataList"
)

// apiObject is an object that the API shows.
type apiObject interface {
	metav1.Object
	runtime.Object
}

// form is how one answer shows objects.
type form struct {
	as      string // empty: as they are
	version string // of as
	include metav1.IncludeObjectPolicy
	printer *printer
	headed  bool // a watch has told the columns
}

// form finds out what the client wants to get.
func (q kubeRequest) form(p *printer) (*form, error) {
	metadata := asMetadataList
	if q.name != "" || q.watches() {
		metadata = asMetadata
	}
	f := &form{printer: p, include: metav1.IncludeObjectPolicy(q.URL.Query().Get("includeObject"))}
	var ok bool
	if f.as, f.version, ok = negotiate(strings.Join(q.Header.Values("Accept"), ","), asTable, metadata); !ok {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
			Message: "only the following media types are accepted: application/json",
		}}
	}
	if f.as == asTable {
		if errs := validation.ValidateTableOptions(&metav1.TableOptions{IncludeObject: f.include}); len(errs) > 0 {
			return nil, apierrors.NewBadRequest("Unable to convert to Table as requested: " + errs.ToAggregate().Error())
		}
	}
	return f, nil
}

// watches reports whether the client wants changes instead of a list.
func (q kubeRequest) watches() bool {
	watch, _ := strconv.ParseBool(q.URL.Query().Get("watch"))
	return watch && q.name == ""
}

// negotiate chooses from an Accept header what there is: JSON, of the objects
// or of what stands for them, and then its version. Source: k8s.io/apiserver,
// endpoints/handlers/negotiation.
func negotiate(accept string, kinds ...string) (as, version string, ok bool) {
	if strings.TrimSpace(accept) == "" {
		return "", "", true
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		switch clause.Type + "/" + clause.SubType {
		case "application/json", "application/*", "*/*":
		default:
			continue
		}
		as, group, version := clause.Params["as"], clause.Params["g"], clause.Params["v"]
		switch {
		case clause.Q == 0: // not wanted
		case as == "" && group == "" && version == "":
			return "", "", true
		case group == metav1.GroupName && (version == "v1" || version == "v1beta1") && slices.Contains(kinds, as):
			return as, group + "/" + version, true
		}
	}
	return "", "", false
}

// object is what stands for an object by itself, and in an event of a watch.
func (f *form) object(obj apiObject) any {
	switch f.as {
	case asTable:
		t := metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: f.version, Kind: asTable}, Rows: []metav1.TableRow{f.row(obj)}}
		t.ResourceVersion = obj.GetResourceVersion()
		if !f.headed {
			t.ColumnDefinitions, f.headed = f.printer.columns, true
		}
		return t
	case asMetadata:
		return f.metadata(obj)
	}
	return obj
}

func (f *form) metadata(obj apiObject) *metav1.PartialObjectMetadata {
	m := meta.AsPartialObjectMetadata(obj)
	m.APIVersion, m.Kind = f.version, asMetadata
	return m
}

func (f *form) row(obj apiObject) metav1.TableRow {
	row := metav1.TableRow{Cells: f.printer.cells(obj)}
	switch f.include {
	case metav1.IncludeNone:
	case metav1.IncludeObject:
		row.Object.Object = obj
	default:
		row.Object.Object = f.metadata(obj)
	}
	return row
}

// listWriter writes a list as it goes.
type listWriter struct {
	*form

	w    http.ResponseWriter
	enc  *json.Encoder
	some bool
}

// list begins a list of objects of a kind.
func (f *form) list(w http.ResponseWriter, apiVersion, kind string) *listWriter {
	w.Header().Set("Content-Type", "application/json")
	l := &listWriter{form: f, w: w, enc: json.NewEncoder(w)}
	switch f.as {
	case asTable:
		fmt.Fprintf(w, `{"kind":"%s","apiVersion":"%s","columnDefinitions":`, f.as, f.version)
		_ = l.enc.Encode(f.printer.columns)
		fmt.Fprint(w, `,"rows":[`)
	case asMetadataList:
		fmt.Fprintf(w, `{"kind":"%s","apiVersion":"%s","items":[`, f.as, f.version)
	default:
		fmt.Fprintf(w, `{"kind":"%sList","apiVersion":"%s","items":[`, kind, apiVersion)
	}
	return l
}

// add adds an object. An error means that the client has left.
func (l *listWriter) add(obj apiObject) error {
	if l.some {
		fmt.Fprint(l.w, ",")
	}
	l.some = true
	switch l.as {
	case asTable:
		return l.enc.Encode(l.row(obj))
	case asMetadataList:
		return l.enc.Encode(l.metadata(obj))
	}
	return l.enc.Encode(obj)
}

func (l *listWriter) end(m metav1.ListMeta) {
	fmt.Fprint(l.w, `],"metadata":`)
	_ = l.enc.Encode(m)
	fmt.Fprint(l.w, "}\n")
}

// printer shows objects of a kind in columns.
type printer struct {
	columns []metav1.TableColumnDefinition
	cells   func(apiObject) []any
}

// printerOf returns a printer whose first column is the name.
func printerOf[T apiObject](cells func(T) []any, columns ...metav1.TableColumnDefinition) *printer {
	name := metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
	return &printer{
		columns: slices.Insert(columns, 0, name),
		cells:   func(obj apiObject) []any { return slices.Insert(cells(obj.(T)), 0, any(obj.GetName())) },
	}
}

// Knative's resources have the columns of its CRDs
// (additionalPrinterColumns). What is not known is null, and shown as nothing.
var (
	servicePrinter = printerOf(func(s *servingv1.Service) []any {
		return append([]any{
			urlCell(s.Status.URL), cell(s.Status.LatestCreatedRevisionName), cell(s.Status.LatestReadyRevisionName),
		}, readyCells(&s.Status.Status)...)
	}, urlColumn, createdColumn, latestReadyColumn, readyColumn, reasonColumn)

	configurationPrinter = printerOf(func(c *servingv1.Configuration) []any {
		return append([]any{
			cell(c.Status.LatestCreatedRevisionName), cell(c.Status.LatestReadyRevisionName),
		}, readyCells(&c.Status.Status)...)
	}, createdColumn, latestReadyColumn, readyColumn, reasonColumn)

	routePrinter = printerOf(func(r *servingv1.Route) []any {
		return append([]any{urlCell(r.Status.URL)}, readyCells(&r.Status.Status)...)
	}, urlColumn, readyColumn, reasonColumn)

	revisionPrinter = printerOf(func(r *servingv1.Revision) []any {
		cells := append([]any{
			cell(r.Labels[serving.ConfigurationLabelKey]), cell(r.Labels[serving.ConfigurationGenerationLabelKey]),
		}, readyCells(&r.Status.Status)...)
		return append(cells, countCell(r.Status.ActualReplicas), countCell(r.Status.DesiredReplicas))
	},
		crdColumn("Config Name", "string", `.metadata.labels['serving\.knative\.dev/configuration']`),
		crdColumn("Generation", "string", `.metadata.labels['serving\.knative\.dev/configurationGeneration']`),
		readyColumn, reasonColumn,
		crdColumn("Actual Replicas", "integer", ".status.actualReplicas"),
		crdColumn("Desired Replicas", "integer", ".status.desiredReplicas"),
	)

	urlColumn         = crdColumn("URL", "string", ".status.url")
	createdColumn     = crdColumn("LatestCreated", "string", ".status.latestCreatedRevisionName")
	latestReadyColumn = crdColumn("LatestReady", "string", ".status.latestReadyRevisionName")
	readyColumn       = crdColumn("Ready", "string", ".status.conditions[?(@.type=='Ready')].status")
	reasonColumn      = crdColumn("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason")
)

func crdColumn(name, kind, path string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{
		Name: name, Type: kind, Description: "Custom resource definition column (in JSONPath format): " + path,
	}
}

func cell(text string) any {
	if text == "" {
		return nil
	}
	return text
}

func urlCell(url *apis.URL) any {
	if url == nil {
		return nil
	}
	return url.String()
}

func countCell(n *int32) any {
	if n == nil {
		return nil
	}
	return *n
}

func readyCells(s *duckv1.Status) []any {
	c := s.GetCondition(apis.ConditionReady)
	if c == nil {
		return []any{nil, nil}
	}
	return []any{cell(string(c.Status)), cell(c.Reason)}
}

// Kubernetes' own resources have its columns. Source: Kubernetes,
// pkg/printers/internalversion.
var (
	namespacePrinter = printerOf(func(n *corev1.Namespace) []any {
		return []any{string(n.Status.Phase), age(n)}
	}, coreColumn("Status", "The status of the namespace"), ageColumn)

	secretPrinter = printerOf(func(s *corev1.Secret) []any {
		return []any{string(s.Type), len(s.Data), age(s)}
	}, coreColumn("Type", corev1.Secret{}.SwaggerDoc()["type"]), coreColumn("Data", corev1.Secret{}.SwaggerDoc()["data"]), ageColumn)

	configMapPrinter = printerOf(func(m *corev1.ConfigMap) []any {
		return []any{len(m.Data) + len(m.BinaryData), age(m)}
	}, coreColumn("Data", corev1.ConfigMap{}.SwaggerDoc()["data"]), ageColumn)

	podPrinter = printerOf(podCells,
		coreColumn("Ready", "The aggregate readiness state of this pod for accepting traffic."),
		coreColumn("Status", "The aggregate status of the containers in this pod."),
		coreColumn("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
		ageColumn,
		wide(coreColumn("IP", corev1.PodStatus{}.SwaggerDoc()["podIP"])),
		wide(coreColumn("Node", corev1.PodSpec{}.SwaggerDoc()["nodeName"])),
		wide(coreColumn("Nominated Node", corev1.PodStatus{}.SwaggerDoc()["nominatedNodeName"])),
		wide(coreColumn("Readiness Gates", corev1.PodSpec{}.SwaggerDoc()["readinessGates"])),
	)

	placeholderPrinter = printerOf(func(s *corev1.Service) []any {
		return []any{string(s.Spec.Type), noCell, s.Spec.ExternalName, noCell, age(s), noCell}
	},
		coreColumn("Type", corev1.ServiceSpec{}.SwaggerDoc()["type"]),
		coreColumn("Cluster-IP", corev1.ServiceSpec{}.SwaggerDoc()["clusterIP"]),
		coreColumn("External-IP", corev1.ServiceSpec{}.SwaggerDoc()["externalIPs"]),
		coreColumn("Port(s)", corev1.ServiceSpec{}.SwaggerDoc()["ports"]),
		ageColumn,
		wide(coreColumn("Selector", corev1.ServiceSpec{}.SwaggerDoc()["selector"])),
	)

	ageColumn = coreColumn("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"])
)

// noCell is what Kubernetes shows of what its own resources do not have.
const noCell = "<none>"

func coreColumn(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

// wide makes a column one that is only shown when there is room for it.
func wide(c metav1.TableColumnDefinition) metav1.TableColumnDefinition {
	c.Priority = 1
	return c
}

func age(obj metav1.Object) string {
	return metatable.ConvertToHumanReadableDateType(obj.GetCreationTimestamp())
}

func podCells(p *corev1.Pod) []any {
	ready, status, ip := 0, string(p.Status.Phase), noCell
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready {
			ready++
		}
		if c.State.Waiting != nil {
			status = c.State.Waiting.Reason
		}
	}
	if p.DeletionTimestamp != nil {
		status = "Terminating"
	}
	if p.Status.PodIP != "" {
		ip = p.Status.PodIP
	}
	// An instance that ends is replaced, never restarted.
	restarts := "0"
	return []any{fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), status, restarts, age(p), ip, noCell, noCell, noCell}
}
