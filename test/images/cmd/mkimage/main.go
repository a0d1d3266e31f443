// Command mkimage builds an OCI archive from a Go program and prints the digest
// of its manifest and the path of the archive:
//
//	mkimage -name localhost/fairway/hello:1 ./test/images/hello
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/fairway-run/fairway/test/images"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var opts images.Options
	flag.StringVar(&opts.Name, "name", "", "full reference of the image")
	flag.StringVar(&opts.User, "user", "", "uid or uid:gid that the program runs as")
	flag.StringVar(&opts.WorkingDir, "workdir", "", "working directory")
	flag.Var((*list)(&opts.Env), "env", "NAME=value, may be repeated")
	flag.Var((*list)(&opts.Cmd), "cmd", "argument of the program, may be repeated")
	flag.Var((*list)(&opts.Entrypoint), "entrypoint", "program and its fixed arguments, may be repeated")
	flag.Var((*list)(&opts.ExposedPorts), "expose", "exposed port such as 8080/tcp, may be repeated")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: mkimage -name <reference> [flags] <package>")
		flag.PrintDefaults()
	}
	flag.Parse()
	opts.Package = flag.Arg(0)
	archive, digest, err := images.BuildDigest(ctx, opts)
	if err != nil {
		return err
	}
	fmt.Println(digest, archive)
	return nil
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}
