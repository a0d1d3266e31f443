package instancepool

import "time"

// Event is one change in the life of an instance, for logs and metrics.
type Event struct {
	// State is the state the instance has come to. Frozen is told only when Err says
	// why it is not: instances are frozen and thawed many times a second.
	State State
	// Instance, Revision and Service name it.
	Instance, Revision, Service string
	// Reason says in a few words why: "queued requests", "idle", "exited" …
	Reason string
	// Err is set when State is Failed or Frozen.
	Err error
	// Holds is set when State is Failed and the instance has yet to be ended: until
	// then, when it is Stopped, it holds what it holds.
	Holds bool
	// PID and Address are set once the instance runs.
	PID     int
	Address string
	// Adopted is set when an earlier process had started it.
	Adopted bool
	// Memory is how many bytes an adopted instance holds, when State is Starting; 0
	// when that is not known.
	Memory int64
	// Phases tells how long each phase of the start took, when State is Ready for the
	// first time; "probe" is the last of them.
	Phases map[string]time.Duration
	// Took is how long the instance was in the state before.
	Took time.Duration
}

// Status is what a pool is doing.
type Status struct {
	// Waiting is the number of queued requests.
	Waiting int
	// InFlight is the number of requests in all instances.
	InFlight  int
	Instances []InstanceStatus
}

// Made counts the instances whose start has begun: not those that are only
// prepared.
func (s Status) Made() int {
	n := 0
	for _, i := range s.Instances {
		if i.State != Warmed {
			n++
		}
	}
	return n
}

// InstanceStatus is what an instance is doing.
type InstanceStatus struct {
	ID    string
	State State
	// Since is when it came into State; Born is when its process was started, or
	// was wanted while there is none.
	Since, Born time.Time
	// Why says in a few words why it was started.
	Why      string
	InFlight int
	// Usage is what it used when that was last measured.
	Usage   Usage
	PID     int
	Address string
}
