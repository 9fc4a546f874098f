// Command cluster is every part of a single-node Kubernetes in one binary: the first argument chooses
// the part. One binary because the parts share nearly all of their code (one build, one link), one
// process per part because they keep global feature gates.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	// Called by that name, the binary is the kubectl that people and scripts expect on their path.
	part := filepath.Base(os.Args[0])
	if part != "kubectl" {
		if len(os.Args) < 2 {
			fmt.Fprintln(os.Stderr, "usage: cluster etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubelet|kube-proxy|kubectl [flags]")
			os.Exit(2)
		}
		part = os.Args[1]
		// The parts read os.Args themselves: show each the command line it would have as a program of its own.
		os.Args = os.Args[1:]
	}

	var command *cobra.Command
	switch part {
	case "etcd":
		command = etcd()
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		command = scheduler.NewSchedulerCommand()
	case "kubelet":
		command = kubelet.NewKubeletCommand(context.Background())
	case "kube-proxy":
		command = proxy.NewProxyCommand()
	case "kubectl":
		command = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "cluster: no part is called %q\n", part)
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

// etcd serves one member from --data-dir on loopback until it is told to stop.
func etcd() *cobra.Command {
	var dataDir string
	command := &cobra.Command{
		Use:           "etcd",
		Short:         "A single etcd member on 127.0.0.1:2379",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := embed.NewConfig()
			config.Dir = dataDir
			config.LogLevel = "warn"
			// A test cluster does not outlive a power cut: fsync would only cost time.
			config.UnsafeNoFsync = true
			server, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			defer server.Close()
			select {
			case <-server.Server.ReadyNotify():
			case <-time.After(30 * time.Second):
				return errors.New("etcd was not ready after 30 s")
			}
			stop, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer cancel()
			select {
			case <-stop.Done():
				return nil
			case err := <-server.Err():
				return err
			}
		},
	}
	command.Flags().StringVar(&dataDir, "data-dir", "", "where the member keeps its data")
	_ = command.MarkFlagRequired("data-dir")
	return command
}
