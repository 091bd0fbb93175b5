//! The manifests of `deploy/` for Istio and Envoy Gateway, read strictly with the types of their APIs (by the
//! Go program beside this file, which has them). There is no cluster here: that they are applied, nobody tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ISTIO: &str = "deploy/istio/portcullis.yaml";
const ENVOY_GATEWAY: &str = "deploy/envoy-gateway/portcullis.yaml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read_by_its_api(manifest: &Path) -> Output {
    Command::new("go")
        .args(["run", "."])
        .arg(manifest)
        .current_dir(root().join("tests/proxies/kubernetes"))
        .output()
        .expect("Go is installed")
}

#[test]
fn every_field_of_the_manifests_is_one_of_the_apis() {
    for (file, kinds) in [
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
        let output = read_by_its_api(&root().join(file));
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        let read = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(read.lines().collect::<Vec<_>>(), kinds, "{file}");
    }
}

#[test]
fn a_field_that_no_api_has_would_be_found() {
    let folder =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to");
    for (file, field) in [
        (ISTIO, "failOpen"),
        (ISTIO, "normalization"),
        (ENVOY_GATEWAY, "failOpen"),
        (ENVOY_GATEWAY, "targetRefs"),
        (ENVOY_GATEWAY, "resourceRules"),
        (ENVOY_GATEWAY, "validationActions"),
    ] {
        let text = fs::read_to_string(root().join(file)).expect("is there");
        let wrong = text.replace(&format!("{field}:"), &format!("{field}s:"));
        assert_ne!(wrong, text, "{field} is in {file}");
        let copy = folder.path().join("manifest.yaml");
        fs::write(&copy, wrong).expect("the folder can be written to");
        assert!(!read_by_its_api(&copy).status.success(), "{file}: {field}s");
    }
}
