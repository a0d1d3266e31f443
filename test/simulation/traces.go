package simulation

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Traces returns the load that policies are compared on; full makes the busy parts
// as long as they would be on a real host, which takes some minutes to simulate.
//
// The set was fixed before any policy had been run on it. It is what a single host
// may see that has one to a hundred services:
//
//   - steady: requests that know nothing of one another, at each of the three
//     concurrencies that matter (1: an app that cannot do two things at a time; 10:
//     a threaded one; 80: the default), once for a load that one instance serves with
//     ease and once for one that needs several. 100 ms to 600 ms is what dynamic pages
//     and APIs take.
//   - diurnal: a day's swell and ebb within an hour, so that the load doubles within
//     minutes as it does after a deploy or in the morning, and never within seconds.
//   - spiky: a trickle, and every other minute a burst whose size is Pareto: mails with
//     links, polls, clients that reconnect.
//   - heavy-tailed: service times and gaps without a typical size: reports beside
//     pings, and people who come and go.
//   - sparse: 80 services by the popularity of the Azure Functions study (Shahrad et
//     al., Serverless in the Wild, 2020): 45 % are called at most once an hour, 81 % at
//     most once a minute, with gaps that vary more than chance would have it.
//   - rhythm: twelve services that a clock calls each minute, five or ten minutes: cron
//     jobs, health checks of others, feeds.
//   - case: the case study of Google's page about concurrency: 400 clients that make
//     three requests a second each, to a service of concurrency 1 and of 80.
//
// Instances take 300 ms (a compiled binary), 1 s (Node, Python) or 3 s (a JVM) to start.
// The length of each part is such that what comes after it, while instances are kept
// in vain, does not outweigh it, and that the whole can be run with each test.
func Traces(full bool) []Trace {
	long := func(d time.Duration) time.Duration {
		if full {
			return 5 * d
		}
		return d
	}
	return []Trace{
		steady("steady-1-small", 1, time.Second, 1, 0.2, long(20*time.Minute)),
		steady("steady-1-large", 1, time.Second, 40, 0.25, long(10*time.Minute)),
		steady("steady-10-small", 10, 300*time.Millisecond, 4, 0.3, long(20*time.Minute)),
		steady("steady-10-large", 10, time.Second, 100, 0.3, long(5*time.Minute)),
		steady("steady-80-small", 80, time.Second, 20, 0.1, long(10*time.Minute)),
		steady("steady-80-large", 80, 3*time.Second, 250, 0.6, long(4*time.Minute)),
		diurnal(),
		spiky(long(40 * time.Minute)),
		heavyTailed(long(40 * time.Minute)),
		sparse(long(4 * time.Hour)),
		rhythm(4 * time.Hour),
		caseStudy("case-1", 1, long(time.Minute)),
		caseStudy("case-80", 80, long(time.Minute)),
	}
}

// webSigma is how much the times of requests of one kind differ: one in twenty
// takes more than twice the median.
const webSigma = 0.5

// web draws service times with that mean.
func web(r *rand.Rand, mean float64) dice {
	return logNormal(r, mean*math.Exp(-webSigma*webSigma/2), webSigma)
}

func steady(name string, concurrency int, startup time.Duration, rate, mean float64, length time.Duration) Trace {
	r := random(name)
	arrivals := renewal(length, exponential(r, 1/rate), web(r, mean))
	return Trace{name, length, []Service{{Name: name, Concurrency: concurrency, Startup: startup, Arrivals: arrivals}}, true}
}

func diurnal() Trace {
	const length = time.Hour
	swell := func(name string, concurrency int, startup time.Duration, least, most, mean float64) Service {
		r := random(name)
		takes := web(r, mean)
		// Thinning: candidates come at the highest rate, and some of them are dropped.
		all := renewal(length, exponential(r, 1/most), takes)
		all = slices.DeleteFunc(all, func(a Arrival) bool {
			phase := 2 * math.Pi * float64(a.At) / float64(length)
			return most*r.Float64() > least+(most-least)*(1-math.Cos(phase))/2
		})
		return Service{Name: name, Concurrency: concurrency, Startup: startup, Arrivals: all}
	}
	return Trace{Name: "diurnal", Length: length, Services: []Service{
		swell("diurnal-1", 1, time.Second, 0.2, 10, 0.25),
		swell("diurnal-10", 10, time.Second, 0.5, 25, 0.8),
	}}
}

func spiky(length time.Duration) Trace {
	burst := func(name string, concurrency int, startup time.Duration, base, mean, least, most, within float64) Service {
		r := random(name)
		takes, size := web(r, mean), pareto(r, least, 1.3, most)
		all := renewal(length, exponential(r, 1/base), takes)
		for _, b := range renewal(length, exponential(r, 120), takes) {
			for range int(size()) {
				all = append(all, Arrival{b.At + seconds(within*r.Float64()), seconds(takes())})
			}
		}
		return Service{Name: name, Concurrency: concurrency, Startup: startup, Arrivals: sorted(all)}
	}
	return Trace{Name: "spiky", Length: length, Services: []Service{
		burst("spiky-1", 1, 300*time.Millisecond, 0.5, 0.2, 10, 100, 1),
		burst("spiky-10", 10, time.Second, 2, 0.3, 30, 400, 2),
		burst("spiky-80", 80, 3*time.Second, 5, 0.2, 100, 800, 2),
	}}
}

func heavyTailed(length time.Duration) Trace {
	service := func(name string, concurrency int, startup time.Duration, draw func(*rand.Rand) (gap, takes dice)) Service {
		gap, takes := draw(random(name))
		return Service{Name: name, Concurrency: concurrency, Startup: startup, Arrivals: renewal(length, gap, takes)}
	}
	// No request may take longer than a minute, as clients would not wait for it.
	capped := func(d dice) dice { return func() float64 { return min(d(), 60) } }
	return Trace{Name: "heavy-tailed", Length: length, Services: []Service{
		service("heavy-1", 1, time.Second, func(r *rand.Rand) (gap, takes dice) {
			return pareto(r, 0.3, 1.5, 600), capped(logNormal(r, 0.15, 1.5))
		}),
		service("heavy-10", 10, 300*time.Millisecond, func(r *rand.Rand) (gap, takes dice) {
			return pareto(r, 0.05, 1.2, 300), pareto(r, 0.1, 1.5, 60)
		}),
		service("heavy-80", 80, 3*time.Second, func(r *rand.Rand) (gap, takes dice) {
			return pareto(r, 0.1, 1.3, 300), capped(logNormal(r, 0.4, 1.2))
		}),
	}}
}

func sparse(length time.Duration) Trace {
	const services = 80
	t := Trace{Name: "sparse", Length: length}
	for n := range services {
		name := fmt.Sprintf("sparse-%d", n)
		r := random(name)
		// Between these rates per hour, all orders of magnitude are as likely.
		least, most := 60., 600.
		switch part := (float64(n) + 0.5) / services; {
		case part < 0.45:
			least, most = 0.25, 1
		case part < 0.81:
			least, most = 1, 60
		}
		mean := 3600 / (least * math.Pow(most/least, r.Float64()))
		const sigma = 1.5
		gap := logNormal(r, mean*math.Exp(-sigma*sigma/2), sigma)
		takes := web(r, min(logNormal(r, 0.4, 1)(), 10))
		concurrency, startup := mixed(n)
		s := Service{Name: name, Concurrency: concurrency, Startup: startup}
		// The trace begins anywhere within a gap.
		began := seconds(mean * r.Float64())
		for _, a := range renewal(length+began, gap, takes) {
			if a.At >= began {
				s.Arrivals = append(s.Arrivals, Arrival{a.At - began, a.Takes})
			}
		}
		t.Services = append(t.Services, s)
	}
	return t
}

func rhythm(length time.Duration) Trace {
	periods := []float64{60, 300, 600}
	t := Trace{Name: "rhythm", Length: length}
	for n := range 12 {
		name := fmt.Sprintf("rhythm-%d", n)
		r := random(name)
		// Whoever calls is not quite on time, and never early.
		late, takes := exponential(r, 0.3), web(r, 1)
		concurrency, startup := mixed(n / len(periods))
		s := Service{Name: name, Concurrency: concurrency, Startup: startup}
		period := periods[n%len(periods)]
		for at := period * r.Float64(); seconds(at) < length; at += period {
			s.Arrivals = append(s.Arrivals, Arrival{seconds(at + min(late(), 5)), seconds(takes())})
		}
		t.Services = append(t.Services, s)
	}
	return t
}

// mixed gives the services of a host different settings.
func mixed(n int) (concurrency int, startup time.Duration) {
	return []int{80, 1, 10}[n%3], []time.Duration{time.Second, 300 * time.Millisecond, 3 * time.Second}[n/3%3]
}

// caseStudy has its clients begin within half a minute, go on for hold and stop all
// at once. Source: Cloud Run: maximum concurrent requests per instance.
func caseStudy(name string, concurrency int, hold time.Duration) Trace {
	const (
		clients = 400
		every   = time.Second / 3
		ramp    = 30 * time.Second
	)
	r := random(name)
	takes := logNormal(r, 0.2, 0.25)
	s := Service{Name: name, Concurrency: concurrency, Startup: time.Second}
	for n := range clients {
		c := Client{From: ramp * time.Duration(n) / clients, To: ramp + hold, Every: every}
		for range (c.To-c.From)/every + 1 {
			c.Takes = append(c.Takes, seconds(takes()))
		}
		s.Clients = append(s.Clients, c)
	}
	return Trace{Name: name, Length: ramp + hold, Services: []Service{s}}
}

func sorted(all []Arrival) []Arrival {
	slices.SortStableFunc(all, func(a, b Arrival) int { return cmp.Compare(a.At, b.At) })
	return all
}
