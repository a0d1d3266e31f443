package containerd

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// masquerade gives what instances send to others than each other the host's own
// address. It is one rule for all of a bridge's network, in a table of the
// bridge's name: rules for each instance, as CNI's plugins make, cost each start,
// and a plugin that outlives the process that called it makes some that nobody
// removes. The kernel's tables live beside those of iptables, whichever kind, and
// whatever was there of an earlier process is replaced in one step.
func masquerade(bridge string, subnet netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("masquerading %s: %w", subnet, err)
	}
	table := masqueradeTable(c, bridge, subnet)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	ip := addresses{source: 12, destination: 16, multicast: netip.MustParsePrefix("224.0.0.0/4")}
	if subnet.Addr().Is6() {
		ip = addresses{source: 8, destination: 24, multicast: netip.MustParsePrefix("ff00::/8")}
	}
	rule := &nftables.Rule{Table: table, Chain: chain}
	rule.Exprs = append(rule.Exprs, within(ip.source, subnet, expr.CmpOpEq)...)
	rule.Exprs = append(rule.Exprs, within(ip.destination, subnet, expr.CmpOpNeq)...)
	rule.Exprs = append(rule.Exprs, within(ip.destination, ip.multicast, expr.CmpOpNeq)...)
	rule.Exprs = append(rule.Exprs, &expr.Masq{})
	c.AddRule(rule)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("masquerading %s, which needs the right to configure networks and a kernel with nf_tables: %w", subnet, err)
	}
	return nil
}

// unmasquerade removes what masquerade made.
func unmasquerade(bridge string, subnet netip.Prefix) error {
	c, err := nftables.New()
	if err == nil {
		masqueradeTable(c, bridge, subnet)
		err = c.Flush()
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the rules of %s: %w", bridge, err)
	}
	return nil
}

// masqueradeTable has c remove the table, whether it is there or not.
func masqueradeTable(c *nftables.Conn, bridge string, subnet netip.Prefix) *nftables.Table {
	table := &nftables.Table{Name: bridge, Family: nftables.TableFamilyIPv4}
	if subnet.Addr().Is6() {
		table.Family = nftables.TableFamilyIPv6
	}
	c.AddTable(table)
	c.DelTable(table)
	return table
}

// addresses says where a packet's addresses begin in its network header, in bytes.
type addresses struct {
	source, destination uint32
	multicast           netip.Prefix
}

// within compares an address of a packet with a network.
func within(offset uint32, network netip.Prefix, op expr.CmpOp) []expr.Any {
	address := network.Masked().Addr().AsSlice()
	size := uint32(len(address))
	mask := make([]byte, size)
	for bit := range network.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: address},
	}
}
