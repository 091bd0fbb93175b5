//! The manifests of `deploy/` for Istio, Envoy Gateway and ingress-nginx, parsed strictly with the types of their APIs by the Go
//! program in `kubernetes/`. They are not applied to a cluster.

use crate::support::subprocess::StartCommand;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ISTIO: &str = "deploy/istio/portcullis.yaml";
const ENVOY_GATEWAY: &str = "deploy/envoy-gateway/portcullis.yaml";
const INGRESS_NGINX: &str = "deploy/ingress-nginx/ingress.yaml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn parse_with_api_types(manifest: &Path) -> Output {
    Command::new("go")
        .args(["run", "."])
        .arg(manifest)
        .current_dir(root().join("tests/proxies/kubernetes"))
        .run_and_read()
        .expect("Go is installed")
}

#[test]
fn every_field_of_the_manifests_is_defined_by_its_api() {
    for (file, kinds) in [
        (INGRESS_NGINX, &["networking.k8s.io/v1 Ingress", "v1 ConfigMap"][..]),
        (ISTIO, &["install.istio.io/v1alpha1 IstioOperator", "security.istio.io/v1 AuthorizationPolicy"][..]),
        (
            ENVOY_GATEWAY,
            &[
                "gateway.envoyproxy.io/v1alpha1 SecurityPolicy",
                "gateway.networking.k8s.io/v1beta1 ReferenceGrant",
                "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy",
                "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding",
            ],
        ),
    ] {
        let output = parse_with_api_types(&root().join(file));
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(stdout.lines().collect::<Vec<_>>(), kinds, "{file}");
    }
}

#[test]
fn an_unknown_field_is_an_error() {
    let folder =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to");
    for (file, field) in [
        (ISTIO, "failOpen"),
        (ISTIO, "normalization"),
        (ENVOY_GATEWAY, "failOpen"),
        (ENVOY_GATEWAY, "targetRefs"),
        (ENVOY_GATEWAY, "resourceRules"),
        (ENVOY_GATEWAY, "validationActions"),
        (INGRESS_NGINX, "ingressClassName"),
        (INGRESS_NGINX, "data"),
    ] {
        let text = fs::read_to_string(root().join(file)).expect("the manifest");
        let wrong = text.replace(&format!("{field}:"), &format!("{field}s:"));
        assert_ne!(wrong, text, "{field} is in {file}");
        let copy = folder.path().join("manifest.yaml");
        fs::write(&copy, wrong).expect("the folder can be written to");
        assert!(!parse_with_api_types(&copy).status.success(), "{file}: {field}s");
    }
}
