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
	SHA256   string    `json:"scenario_sha256,omitempty"` // of its file, in hexadecimal digits
	Seed     uint64    `json:"seed"`
	Started  time.Time `json:"started"` // UTC
	Command  []string  `json:"command"` // flags that repeat the run, without "--cell", "--seed" and "--shard"

	Idlerace string `json:"idlerace"` // version of this program
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Kernel   string `json:"kernel"`
	Cores    int    `json:"cores"`

	Lanes int `json:"lanes"` // client connections of each item

	NoPackets string `json:"no_packets,omitempty"` // why no packets were captured; empty: they were, or nobody wanted them

	Engine      *Engine       `json:"engine,omitempty"` // nil: no container was asked for
	Proxies     []ProxyRun    `json:"proxies"`
	Unavailable []Unavailable `json:"unavailable"`
	Items       []plan.Item   `json:"items"`

	Shard  plan.Shard `json:"shard,omitzero"`   // what of the scenario this run is; zero: all
	Shards int        `json:"shards,omitempty"` // merged from so many; each has its own manifest in shards/<i>

	StartUp time.Duration `json:"start_up_ns"` // until every service was ready
	Probing time.Duration `json:"probing_ns"`  // 0 while it lasts
	Ended   string        `json:"ended"`       // End.Reason; empty while it lasts
	// Faults of services during the run, by proxy name (FaultOrigin for all).
	Faults   map[string]string `json:"faults,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
}

// ManifestSchema names the format of manifest.json.
const ManifestSchema = "idlerace/manifest/v1"

// FaultOrigin names in Manifest.Faults what befell all proxies.
const FaultOrigin = "origin"

// Where a proxy comes from.
const (
	RuntimeLocal    = "local"    // an executable of this machine
	RuntimeEmbedded = "embedded" // this program itself
	RuntimeDocker   = "docker"   // a container
)

// Side names the part of the stack that a proxy of a runtime belongs to:
// RuntimeDocker, or RuntimeLocal for whatever runs as a process of this
// machine. Each has an origin of its own.
func Side(runtime string) string {
	if runtime == RuntimeDocker {
		return RuntimeDocker
	}
	return RuntimeLocal
}

// ProxyRun says what really ran under a proxy's name.
type ProxyRun struct {
	Name    string `json:"name"`
	Runtime string `json:"runtime"` // RuntimeLocal, RuntimeEmbedded or RuntimeDocker
	Why     string `json:"why"`     // this runtime and no other
	Version string `json:"version"`
	Path    string `json:"path,omitempty"`     // of the executable, unless a container's
	Image   string `json:"image,omitempty"`    // of the container
	ImageID string `json:"image_id,omitempty"` // "sha256:..."
}

// Engine is the container engine of a run.
type Engine struct {
	Name    string `json:"name"` // "Docker"
	Version string `json:"version"`
	Host    string `json:"host"` // "unix:///var/run/docker.sock"
	OS      string `json:"os"`   // of the engine's machine
	Arch    string `json:"arch"`
	Path    string `json:"path"`   // how containers are reached: "container addresses" or "mapped ports"
	Limits  string `json:"limits"` // of each container's resources
	Reaper  bool   `json:"reaper"` // Ryuk removes what a killed run leaves
}

// Unavailable is a proxy of the scenario that could not run here.
type Unavailable struct {
	Proxy  string `json:"proxy"`
	Reason string `json:"reason"`
	Get    string `json:"get"` // one command that would change that
}
