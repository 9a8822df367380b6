// One binary holding every component of a Kubernetes control plane and node, and etcd. The name it is called by says which one it
// is, as with busybox: the components share nearly all of their code, so that one link of 130 MB replaces six.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	etcd "go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	// The components' own main packages register these by import; without them JSON logs and client metrics are absent.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              proxy.NewProxyCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	if name == "etcd" {
		etcd.Main(os.Args) // parses its own flags and exits by itself
		return
	}
	command, known := commands[name]
	if !known {
		fmt.Fprintf(os.Stderr, "must be called as etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet or "+
			"kube-proxy, found %q; make a link of that name to this binary\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}
