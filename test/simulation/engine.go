package simulation

import "time"

// request is one that is under way.
type request struct {
	came  time.Duration
	takes time.Duration
	done  func() // called at its end
}

// server is what the requests of a service go to.
type server interface{ serve(request) }

// run plays a trace, each of whose services has a server of its own, and returns
// when all is over, which is when the last instance has ended.
func run(t Trace, newServer func(*clock, *meter, Service) server) *Result {
	c, m := new(clock), newMeter(t)
	for _, s := range t.Services {
		to := newServer(c, m, s)
		playArrivals(c, to, s.Arrivals)
		for _, client := range s.Clients {
			playClient(c, to, client)
		}
	}
	c.run()
	return m.result
}

// playArrivals has only the next of them in the clock: a heap of all would be slow.
func playArrivals(c *clock, to server, all []Arrival) {
	if len(all) == 0 {
		return
	}
	c.after(all[0].At-c.now, func() {
		playArrivals(c, to, all[1:])
		to.serve(request{came: c.now, takes: all[0].Takes, done: func() {}})
	})
}

func playClient(c *clock, to server, client Client) {
	n := 0
	var send func()
	send = func() {
		if c.now >= client.To {
			return
		}
		next := c.now + client.Every
		takes := client.Takes[n]
		n++
		to.serve(request{came: c.now, takes: takes, done: func() { c.after(next-c.now, send) }})
	}
	c.after(client.From, send)
}
