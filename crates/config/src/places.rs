//! The lines of a configuration's settings, for the advice of refusals and for the log.

use portcullis_core::decision::{ConfigPlaces, ConfigSection};

use super::Config;
use super::document::{Node, Value};

/// The mappings whose keys are listed with those of the mapping that they are in.
const NESTED: [&str; 7] = ["listen", "limits", "shutdown", "responses", "require", "refresh", "http"];

/// The places of the settings of this document, which is that of `config`.
pub(super) fn places(root: &Node, config: &Config) -> ConfigPlaces {
    let providers = entries(root, "providers").zip(&config.providers);
    let rules = entries(root, "rules").zip(config.rules.all());
    ConfigPlaces::new(
        section(String::new(), root),
        providers.map(|(section, config)| (config.provider.name.clone(), section)),
        rules.map(|(section, rule)| (rule.name.clone(), section)),
    )
}

/// The entries of a list at the top of the document.
fn entries<'n>(root: &'n Node, list: &'n str) -> impl Iterator<Item = ConfigSection> + use<'n> {
    let nodes = match member(root, list).map(|node| &node.value) {
        Some(Value::Sequence(nodes)) => nodes.as_slice(),
        _ => &[],
    };
    nodes.iter().enumerate().map(move |(index, node)| section(format!("{list}[{index}]"), node))
}

fn member<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Mapping(members) = &node.value else { return None };
    members.iter().find(|member| member.key == key).map(|member| &member.node)
}

fn section(path: String, node: &Node) -> ConfigSection {
    let mut keys = Vec::new();
    if let Value::Mapping(members) = &node.value {
        for member in members {
            keys.push((member.key.as_str().into(), member.at.line));
            if let (true, Value::Mapping(inner)) = (NESTED.contains(&&*member.key), &member.node.value) {
                for one in inner {
                    let path = format!("{}.{}", member.key, one.key);
                    if let Value::Sequence(elements) = &one.node.value {
                        let elements = elements.iter().enumerate();
                        keys.extend(
                            elements.map(|(at, node)| (format!("{path}[{at}]").into(), node.at.line)),
                        );
                    }
                    keys.push((path.into(), one.at.line));
                }
            }
        }
    }
    ConfigSection { path, line: node.at.line, keys }
}
