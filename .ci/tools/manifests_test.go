// Package tools has no code: it is where the checks live whose libraries the
// program does not need.
package tools

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const manifests = "../../docker/kubernetes"

// decode reads a manifest into Kubernetes' own type for it. A field that the type
// does not have, one given twice and a value of another type are errors.
func decode(doc []byte) (any, error) {
	var is struct{ APIVersion, Kind string }
	if err := sigsyaml.Unmarshal(doc, &is); err != nil {
		return nil, err
	}
	into, ok := map[string]any{
		"batch/v1 Job": &batchv1.Job{}, "v1 ConfigMap": &corev1.ConfigMap{}, "v1 PersistentVolumeClaim": &corev1.PersistentVolumeClaim{},
	}[is.APIVersion+" "+is.Kind]
	if !ok {
		return nil, errors.New(is.APIVersion + " " + is.Kind + " is no kind that this test knows")
	}
	return into, sigsyaml.UnmarshalStrict(doc, into)
}

func documents(t *testing.T, file string) (docs [][]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := yaml.NewYAMLReader(bufio.NewReader(f))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		docs = append(docs, doc)
	}
}

// TestManifests reads the Kubernetes manifests by Kubernetes' types, and holds
// their pods against what its Pod Security Standard "restricted" wants.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	indexed := 0
	for _, file := range files {
		claims := map[string]bool{"idlerace": true} // made by job.yaml, for both
		for _, doc := range documents(t, file) {
			object, err := decode(doc)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			job, ok := object.(*batchv1.Job)
			if !ok {
				continue
			}
			pod(t, file, job.Spec.Template.Spec, claims)
			if mode := job.Spec.CompletionMode; mode != nil && *mode == batchv1.IndexedCompletion {
				indexed++
				s := job.Spec
				if s.Completions == nil || s.Parallelism == nil || *s.Completions != *s.Parallelism || s.BackoffLimitPerIndex == nil {
					t.Errorf("%s: %+v", file, s)
				}
			}
		}
	}
	if indexed != 1 {
		t.Errorf("%d indexed Jobs, want 1", indexed)
	}
}

func pod(t *testing.T, file string, s corev1.PodSpec, claims map[string]bool) {
	t.Helper()
	if s.RestartPolicy != corev1.RestartPolicyNever {
		t.Errorf("%s: a container that is started again is a second run", file)
	}
	if c := s.SecurityContext; c == nil || c.RunAsNonRoot == nil || !*c.RunAsNonRoot || c.SeccompProfile == nil || c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: the pod's security: %+v", file, c)
	}
	if s.HostNetwork || s.HostPID || s.HostIPC || s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken {
		t.Errorf("%s: the pod reaches further than it needs", file)
	}
	var volumes []string
	for _, v := range s.Volumes {
		volumes = append(volumes, v.Name)
		if p := v.PersistentVolumeClaim; p != nil && !claims[p.ClaimName] {
			t.Errorf("%s: no claim is called %s", file, p.ClaimName)
		}
		if v.HostPath != nil {
			t.Errorf("%s: a folder of the node is mounted", file)
		}
	}
	for _, c := range slices.Concat(s.InitContainers, s.Containers) {
		x := c.SecurityContext
		if x == nil || x.Privileged != nil && *x.Privileged || x.AllowPrivilegeEscalation == nil || *x.AllowPrivilegeEscalation ||
			x.ReadOnlyRootFilesystem == nil || !*x.ReadOnlyRootFilesystem || x.Capabilities == nil || !slices.Equal(x.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(x.Capabilities.Add) > 0 {
			t.Errorf("%s: %s: security %+v", file, c.Name, x)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
			t.Errorf("%s: %s: resources %+v", file, c.Name, c.Resources)
		}
		for _, m := range c.VolumeMounts {
			if !slices.Contains(volumes, m.Name) {
				t.Errorf("%s: %s: no volume is called %s", file, c.Name, m.Name)
			}
		}
	}
}

// The check itself must be able to fail.
func TestDecode(t *testing.T) {
	good := string(documents(t, filepath.Join(manifests, "gate.yaml"))[0])
	if _, err := decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"backoffLimit:", "backofLimit:"}, {"backoffLimit: 0", "backoffLimit: none"}, {"kind: Job", "kind: Jobs"}, {"apiVersion: batch/v1", "apiVersion: v1"},
		{"drop: [ALL]", "drop: ALL"}, {"memory: 512Mi", "memory: much"}, {"  backoffLimit: 0", "  backoffLimit: 0\n  backoffLimit: 1"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := decode([]byte(bad)); bad == good || err == nil {
			t.Errorf("%q instead of %q is read", change[1], change[0])
		}
	}
}
