package record

import (
	"time"

	"idlerace/harness/plan"
)

// Manifest is manifest.json: what ran, where, and how it ended. It is written
// when probing begins and again at the end.
type Manifest struct {
	Schema   string    `json:"schema"` // ManifestSchema
	Scenario string    `json:"scenario"`
	Seed     uint64    `json:"seed"`
	Started  time.Time `json:"started"` // UTC
	Command  []string  `json:"command"` // flags that repeat the run, without "--cell" and "--seed"

	Idlerace string `json:"idlerace"` // version of this program
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Kernel   string `json:"kernel"`
	Cores    int    `json:"cores"`

	Proxies     []ProxyRun    `json:"proxies"`
	Unavailable []Unavailable `json:"unavailable"`
	Items       []plan.Item   `json:"items"`

	StartUp time.Duration `json:"start_up_ns"` // until every service was ready
	Probing time.Duration `json:"probing_ns"`  // 0 while it lasts
	Ended   string        `json:"ended"`       // End.Reason; empty while it lasts
	// Faults of services during the run, by proxy name ("origin" for all).
	Faults   map[string]string `json:"faults,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
}

// ManifestSchema names the format of manifest.json.
const ManifestSchema = "idlerace/manifest/v1"

// ProxyRun says what really ran under a proxy's name.
type ProxyRun struct {
	Name    string `json:"name"`
	Runtime string `json:"runtime"` // "embedded" or "local"
	Version string `json:"version"`
	Path    string `json:"path"` // of the executable
}

// Unavailable is a proxy of the scenario that could not run here.
type Unavailable struct {
	Proxy  string `json:"proxy"`
	Reason string `json:"reason"`
	Get    string `json:"get"` // one command that would change that
}
