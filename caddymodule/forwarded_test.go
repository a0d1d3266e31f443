package caddymodule

import (
	"net/http"
	"testing"
)

func TestForwarded(t *testing.T) {
	for name, test := range map[string]struct {
		header http.Header
		want   string
	}{
		"one":        {http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"hello.example.com"}}, "for=192.0.2.1;host=hello.example.com;proto=https"},
		"a port":     {http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Host": {"localhost:8080"}}, `for=192.0.2.1;host="localhost:8080"`},
		"IPv6":       {http.Header{"X-Forwarded-For": {"2001:db8::1"}}, `for="[2001:db8::1]"`},
		"proxies":    {http.Header{"X-Forwarded-For": {"192.0.2.1, 2001:db8::1", "198.51.100.7"}, "X-Forwarded-Proto": {"http"}}, `for=192.0.2.1, for="[2001:db8::1]", for=198.51.100.7;proto=http`},
		"forged":     {http.Header{"Forwarded": {"for=evil"}, "X-Forwarded-For": {"192.0.2.1"}}, "for=192.0.2.1"},
		"forged all": {http.Header{"Forwarded": {"for=evil"}}, ""},
		"nobody":     {http.Header{"X-Forwarded-For": {""}, "X-Forwarded-Host": {"a"}}, ""},
		"no address": {http.Header{"X-Forwarded-For": {","}, "X-Forwarded-Host": {"a"}}, "host=a"},
		"quoted":     {http.Header{"X-Forwarded-For": {`a"b\c`}}, `for="a\"b\\c"`},
	} {
		if setForwarded(test.header, nil); test.header.Get("Forwarded") != test.want {
			t.Errorf("%s: %q; want %q", name, test.header.Get("Forwarded"), test.want)
		}
	}
}
