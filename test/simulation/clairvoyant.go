package simulation

// clairvoyant has at each moment as many instances as the requests of that moment
// need, all of them full but one, and none waits: no policy can do with less, unless
// it lets requests wait. An instance that is not needed does not exist.
func clairvoyant(c *clock, m *meter, of Service) server { return &oracle{c, m, of, 0, 0} }

type oracle struct {
	*clock
	meter     *meter
	of        Service
	requests  int
	instances int
}

func (o *oracle) serve(r request) {
	o.meter.came(o.now)
	o.meter.admitted(0)
	o.change(1)
	o.after(r.takes, func() {
		o.meter.left(o.now)
		o.change(-1)
		r.done()
	})
}

func (o *oracle) change(requests int) {
	o.requests += requests
	need := (o.requests + o.of.Concurrency - 1) / o.of.Concurrency
	o.meter.instances(o.now, need-o.instances, need-o.instances)
	o.instances = need
}
