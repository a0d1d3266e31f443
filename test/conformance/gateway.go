package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The Service that the tests take for the way into the cluster. They ask for it
// even when they are told the way in, for the ports.
const ingressGateway = "/api/v1/namespaces/istio-system/services/istio-ingressgateway"

// gateway serves the API of Caddy's admin endpoint and the one thing besides it
// that the tests ask for and that is no part of Knative: the cluster's ingress
// gateway, which says that port 80 of services is site's port here.
func gateway(admin string, sitePort int32) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: admin}) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	service := corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-ingressgateway"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, NodePort: sitePort}}},
	}
	mux := http.NewServeMux()
	mux.Handle("/", proxy)
	mux.HandleFunc("GET "+ingressGateway, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(service)
	})
	return mux
}

// serveGateway serves it on a port of its own until the server is closed.
func serveGateway(admin string, sitePort int32) (*http.Server, string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	server := &http.Server{Handler: gateway(admin, sitePort)}
	go func() { _ = server.Serve(l) }()
	return server, "http://" + l.Addr().String(), nil
}
