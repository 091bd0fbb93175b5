// Parses the manifests of deploy/ strictly with the types of their APIs: an unknown field or a field of another
// type is an error. Run by tests/proxies/kubernetes.rs.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	gateway "github.com/envoyproxy/gateway/api/v1alpha1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"
	security "istio.io/api/security/v1beta1"
	admission "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	grants "sigs.k8s.io/gateway-api/apis/v1beta1"
	"sigs.k8s.io/yaml"
)

// envelope has the common fields of every manifest, with the spec unparsed.
type envelope struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        json.RawMessage `json:"metadata,omitempty"`
	Spec            json.RawMessage `json:"spec,omitempty"`
	Data            json.RawMessage `json:"data,omitempty"`
}

func main() {
	for _, file := range os.Args[1:] {
		text, err := os.ReadFile(file)
		if err == nil {
			err = check(text)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			os.Exit(1)
		}
	}
}

func check(text []byte) error {
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		var manifest envelope
		if err := yaml.UnmarshalStrict(document, &manifest); err != nil {
			return err
		}
		kind := manifest.APIVersion + " " + manifest.Kind
		if err := checkOne(kind, document, manifest.Spec); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		fmt.Println(kind)
	}
	return nil
}

func checkOne(kind string, document []byte, spec json.RawMessage) error {
	switch kind {
	case "gateway.envoyproxy.io/v1alpha1 SecurityPolicy":
		return yaml.UnmarshalStrict(document, &gateway.SecurityPolicy{})
	case "gateway.networking.k8s.io/v1beta1 ReferenceGrant":
		return yaml.UnmarshalStrict(document, &grants.ReferenceGrant{})
	case "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy":
		return yaml.UnmarshalStrict(document, &admission.ValidatingAdmissionPolicy{})
	case "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding":
		return yaml.UnmarshalStrict(document, &admission.ValidatingAdmissionPolicyBinding{})
	case "networking.k8s.io/v1 Ingress":
		return yaml.UnmarshalStrict(document, &networking.Ingress{})
	case "v1 ConfigMap":
		return yaml.UnmarshalStrict(document, &core.ConfigMap{})
	case "security.istio.io/v1 AuthorizationPolicy":
		return strict(spec, &security.AuthorizationPolicy{})
	case "install.istio.io/v1alpha1 IstioOperator":
		var operator struct {
			MeshConfig json.RawMessage `json:"meshConfig"`
		}
		if err := yaml.UnmarshalStrict(spec, &operator); err != nil {
			return err
		}
		return strict(operator.MeshConfig, &mesh.MeshConfig{})
	default:
		return fmt.Errorf("unknown API")
	}
}

func strict(text json.RawMessage, message proto.Message) error {
	return protojson.Unmarshal(text, message)
}
