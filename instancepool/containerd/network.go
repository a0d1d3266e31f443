package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/netns"
	gocni "github.com/containerd/go-cni"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// networkTimeout bounds the plugins' work on one network.
	networkTimeout = 30 * time.Second
	// refillPause follows a network that could not be made ahead.
	refillPause = 5 * time.Second
	// refillQuiet is how long no network must have been taken before more are
	// made ahead: their making costs as much CPU as a good part of a start, and
	// would slow down the very start that took one.
	refillQuiet = 150 * time.Millisecond
	interfaceIn = "eth0"
	networkName = "fairway"
)

// attachment is the network of one instance.
type attachment struct {
	// ID names it; it is not that of the instance, as it may have been made ahead.
	ID string
	// NetNS is the path of its network namespace; empty for the host's.
	NetNS string
	// Address is the host and port that the instance is dialled at.
	Address string
}

func (a attachment) host() string {
	host, _, err := net.SplitHostPort(a.Address)
	if err != nil {
		return a.Address
	}
	return host
}

// port is what the instance is told to listen on.
func (a attachment) port(otherwise int) int {
	_, text, err := net.SplitHostPort(a.Address)
	if err != nil {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return otherwise
	}
	return n
}

// network gives instances their networks.
type network interface {
	// attach returns a network for an instance that listens on port.
	attach(ctx context.Context, port int) (attachment, error)
	// yield leaves the address to the instance, which is about to be started.
	yield(id string)
	// detach removes a network and gives its address back. It is idempotent.
	detach(ctx context.Context, id string) error
	// adopt notes that a network from an earlier process is in use.
	adopt(id string)
	// unuse notes that nobody uses a network any more: the sweep may remove it.
	unuse(id string)
	// sweep removes the networks that nobody uses.
	sweep(ctx context.Context) error
	// fill makes networks ahead until ctx ends.
	fill(ctx context.Context, log *zap.Logger)
	// close removes what was made ahead, and what nobody needs without networks.
	close() error
}

// bridgeNetwork makes network namespaces on a bridge, with CNI's plugins.
type bridgeNetwork struct {
	bridge string
	subnet netip.Prefix
	conf   []byte
	bins   []string
	netns  string // directory of the namespaces
	leases string // directory of the addresses given out
	want   int    // to be kept ready
	taken  chan struct{}

	// making is held for reading while a namespace exists whose ID is not in used
	// yet, and for writing while it is looked for those that nobody uses.
	making sync.RWMutex

	mu    sync.Mutex      // guards all below
	cni   gocni.CNI       // nil before the first use
	ready []attachment    // made ahead; Address without a port
	used  map[string]bool // IDs of those and of all in use
}

func newBridgeNetwork(o Options) *bridgeNetwork {
	data := filepath.Join(o.StateDir, "ipam")
	subnet := netip.MustParsePrefix(o.Subnet)
	return &bridgeNetwork{
		bridge: o.bridge(), subnet: subnet,
		conf: bridgeConf(o.bridge(), subnet, data), bins: o.CNIBinDirs,
		netns: filepath.Join(o.StateDir, "netns"), leases: filepath.Join(data, networkName),
		want: o.Prepared, taken: make(chan struct{}, 1), used: make(map[string]bool),
	}
}

// bridgeConf is the network's CNI configuration. Masquerading is not the plugins'
// business, see masquerade.
func bridgeConf(bridge string, subnet netip.Prefix, data string) []byte {
	route := "0.0.0.0/0"
	if subnet.Addr().Is6() {
		route = "::/0"
	}
	type object = map[string]any
	b, err := json.Marshal(object{
		"cniVersion": "0.4.0", "name": networkName,
		"plugins": []object{{
			"type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true,
			"ipam": object{
				"type": "host-local", "dataDir": data,
				"ranges": [][]object{{{"subnet": subnet}}}, "routes": []object{{"dst": route}},
			},
		}},
	})
	if err != nil {
		panic("containerd: encoding a constant: " + err.Error())
	}
	return b
}

// plugins returns the CNI plugins, which are looked for at the first use.
func (n *bridgeNetwork) plugins() (gocni.CNI, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cni != nil {
		return n.cni, nil
	}
	for _, plugin := range []string{"bridge", "host-local", "loopback"} {
		if !n.has(plugin) {
			return nil, fmt.Errorf("the CNI plugin %q is not in %s: install the CNI plugins (Debian: containernetworking-plugins)",
				plugin, strings.Join(n.bins, ", "))
		}
	}
	cni, err := gocni.New(gocni.WithMinNetworkCount(2), gocni.WithPluginDir(n.bins), gocni.WithInterfacePrefix("eth"))
	if err != nil {
		return nil, fmt.Errorf("setting up CNI: %w", err)
	}
	if err := cni.Load(gocni.WithConfListBytes(n.conf), gocni.WithLoNetwork); err != nil {
		return nil, fmt.Errorf("setting up CNI: %w", err)
	}
	if err := masquerade(n.bridge, n.subnet); err != nil {
		return nil, err
	}
	n.cni = cni
	return cni, nil
}

func (n *bridgeNetwork) has(plugin string) bool {
	for _, dir := range n.bins {
		if _, err := os.Stat(filepath.Join(dir, plugin)); err == nil {
			return true
		}
	}
	return false
}

func (n *bridgeNetwork) attach(ctx context.Context, port int) (attachment, error) {
	a, ok := n.take()
	if !ok {
		var err error
		if a, err = n.make(ctx); err != nil {
			return attachment{}, err
		}
	}
	a.Address = net.JoinHostPort(a.Address, strconv.Itoa(port))
	return a, nil
}

func (n *bridgeNetwork) take() (attachment, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case n.taken <- struct{}{}:
	default:
	}
	if len(n.ready) == 0 {
		return attachment{}, false
	}
	a := n.ready[0]
	n.ready = n.ready[1:]
	return a, true
}

// make makes a network namespace on the bridge.
func (n *bridgeNetwork) make(ctx context.Context) (attachment, error) {
	cni, err := n.plugins()
	if err != nil {
		return attachment{}, err
	}
	if err := os.MkdirAll(n.netns, 0o711); err != nil {
		return attachment{}, err
	}
	ns, err := n.namespace()
	if err != nil {
		return attachment{}, fmt.Errorf("making a network namespace: %w", err)
	}
	id := filepath.Base(ns.GetPath())
	// A plugin that is killed in the middle leaves what is hard to find.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), networkTimeout)
	defer cancel()
	result, err := cni.Setup(ctx, id, ns.GetPath())
	if err == nil {
		if cfg := result.Interfaces[interfaceIn]; cfg != nil && len(cfg.IPConfigs) > 0 {
			if err = n.introduce(cfg); err == nil {
				return attachment{ID: id, NetNS: ns.GetPath(), Address: cfg.IPConfigs[0].IP.String()}, nil
			}
		} else {
			err = errors.New("the plugins gave no address")
		}
	}
	return attachment{}, errors.Join(fmt.Errorf("setting up the network: %w", err), n.detach(context.WithoutCancel(ctx), id))
}

// introduce tells the host which interface has the address now. Addresses are
// used again, and the kernel would for nine seconds send what is for the new
// instance to the old one.
func (n *bridgeNetwork) introduce(cfg *gocni.Config) error {
	mac, err := net.ParseMAC(cfg.Mac)
	if err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return fmt.Errorf("looking for bridge %s: %w", n.bridge, err)
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: bridge.Attrs().Index, IP: cfg.IPConfigs[0].IP, HardwareAddr: mac, State: netlink.NUD_REACHABLE,
	})
	if err != nil {
		return fmt.Errorf("introducing %s to the host: %w", cfg.IPConfigs[0].IP, err)
	}
	return nil
}

func (n *bridgeNetwork) namespace() (*netns.NetNS, error) {
	n.making.RLock()
	defer n.making.RUnlock()
	ns, err := netns.NewNetNS(n.netns)
	if err == nil {
		n.adopt(filepath.Base(ns.GetPath()))
	}
	return ns, err
}

func (n *bridgeNetwork) detach(ctx context.Context, id string) error {
	// If it fails, what is left is for the sweep: nobody uses it any more.
	defer n.unuse(id)
	cni, err := n.plugins()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	ns := netns.LoadNetNS(filepath.Join(n.netns, id))
	path := ns.GetPath()
	closed, err := ns.Closed()
	if err != nil {
		return fmt.Errorf("looking at network namespace %s: %w", id, err)
	}
	if closed { // since the host was restarted; the plugins give the address back all the same
		path = ""
	}
	if err := cni.Remove(ctx, id, path); err != nil {
		return fmt.Errorf("removing network %s: %w", id, err)
	}
	if err := ns.Remove(); err != nil && !missing(err) {
		return fmt.Errorf("removing network namespace %s: %w", id, err)
	}
	return nil
}

func (n *bridgeNetwork) yield(string) {} // nobody else has it

func (n *bridgeNetwork) unuse(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, id)
}

func (n *bridgeNetwork) adopt(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.used[id] = true
}

func (n *bridgeNetwork) inUse(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.used[id]
}

// sweep looks at the namespaces and at the addresses: after a restart of the
// host the former are gone, and a crash may have come between the two.
func (n *bridgeNetwork) sweep(ctx context.Context) error {
	ids, err := n.unused()
	if err != nil {
		return err
	}
	var problems error
	for _, id := range ids {
		problems = errors.Join(problems, n.detach(ctx, id))
	}
	return problems
}

// unused returns the IDs of the networks that nobody uses.
func (n *bridgeNetwork) unused() ([]string, error) {
	n.making.Lock()
	defer n.making.Unlock()
	ids := make(map[string]bool)
	entries, err := os.ReadDir(n.netns)
	if err != nil && !missing(err) {
		return nil, err
	}
	for _, e := range entries {
		ids[e.Name()] = true
	}
	if err := n.reserved(ids); err != nil {
		return nil, fmt.Errorf("reading the addresses: %w", err)
	}
	maps.DeleteFunc(ids, func(id string, _ bool) bool { return n.inUse(id) })
	return slices.Sorted(maps.Keys(ids)), nil
}

// reserved adds the IDs of the networks that have an address.
func (n *bridgeNetwork) reserved(ids map[string]bool) error {
	lock, err := os.Open(filepath.Join(n.leases, "lock")) // host-local's
	if missing(err) {
		return nil // it has not given out any yet
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	// While the plugin works, an empty file may be one that it is about to write.
	quiet := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	given, err := os.ReadDir(n.leases)
	if err != nil {
		return err
	}
	for _, e := range given {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue // the plugin's lock and counters
		}
		b, err := os.ReadFile(filepath.Join(n.leases, e.Name()))
		if err != nil {
			continue
		}
		id, _, _ := strings.Cut(string(b), "\n")
		if id = strings.TrimSpace(id); id != "" {
			ids[id] = true
		} else if quiet { // the plugin was killed while it wrote
			if err := os.Remove(filepath.Join(n.leases, e.Name())); err != nil && !missing(err) {
				return err
			}
		}
	}
	return nil
}

func (n *bridgeNetwork) fill(ctx context.Context, log *zap.Logger) {
	for ctx.Err() == nil {
		n.mu.Lock()
		missing := n.want - len(n.ready)
		n.mu.Unlock()
		if missing <= 0 {
			select {
			case <-n.taken:
			case <-ctx.Done():
			}
			n.quiet(ctx)
			continue
		}
		a, err := n.make(ctx)
		if err == nil {
			n.mu.Lock()
			n.ready = append(n.ready, a)
			n.mu.Unlock()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log.Warn("making a network ahead", zap.Error(err))
		pause := time.NewTimer(refillPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// quiet returns when no network has been taken for a while.
func (n *bridgeNetwork) quiet(ctx context.Context) {
	timer := time.NewTimer(refillQuiet)
	defer timer.Stop()
	for {
		select {
		case <-n.taken:
			timer.Reset(refillQuiet)
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (n *bridgeNetwork) close() error {
	n.mu.Lock()
	ready := n.ready
	n.ready = nil
	n.mu.Unlock()
	problems := make([]error, len(ready))
	var removals sync.WaitGroup
	for i, a := range ready {
		removals.Go(func() { problems[i] = n.detach(context.Background(), a.ID) })
	}
	removals.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cni != nil && len(n.used) == 0 {
		problems = append(problems, unmasquerade(n.bridge, n.subnet))
	}
	return errors.Join(problems...)
}

// hostNetwork gives each instance a port of the host's loopback interface.
type hostNetwork struct {
	mu sync.Mutex // guards used
	// used holds the addresses that are taken. Until an instance is started, which may
	// be long after it was prepared, its port is kept from the host's other programs.
	used map[string]net.Listener
}

func newHostNetwork() *hostNetwork { return &hostNetwork{used: make(map[string]net.Listener)} }

func (n *hostNetwork) attach(ctx context.Context, _ int) (attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return attachment{}, fmt.Errorf("looking for a free port: %w", err)
		}
		address := l.Addr().String()
		if _, taken := n.used[address]; !taken { // by an instance that does not listen yet
			n.used[address] = l
			return attachment{ID: address, Address: address}, nil
		}
		if err := l.Close(); err != nil {
			return attachment{}, fmt.Errorf("looking for a free port: %w", err)
		}
	}
}

func (n *hostNetwork) yield(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.used[id]; l != nil {
		_ = l.Close()
		n.used[id] = nil
	}
}

func (n *hostNetwork) detach(_ context.Context, id string) error {
	n.unuse(id)
	return nil
}

func (n *hostNetwork) unuse(id string) {
	n.yield(id)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, id)
}

func (n *hostNetwork) adopt(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.used[id]; !known {
		n.used[id] = nil
	}
}

func (n *hostNetwork) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.used {
		if l != nil {
			_ = l.Close()
		}
	}
	clear(n.used)
	return nil
}

func (n *hostNetwork) sweep(context.Context) error       { return nil }
func (n *hostNetwork) fill(context.Context, *zap.Logger) {}
