//! Parses the query of a request for conditions, as forms are parsed (URL standard,
//! `application/x-www-form-urlencoded`).
//!
//! Pure. Programs differ more about queries than about any other part of a request. A query in which two programs
//! would find two values for a parameter that a condition names is not parsed: the condition is then undecided, and
//! the request is denied.

use std::borrow::Cow;
use std::collections::BTreeSet;

use percent_encoding::percent_decode;

use super::condition::Members;

/// A name and its value.
pub type Parameter<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The parameters that `read` contains, each once, in the order of the query.
///
/// # Errors
/// The difference between programs, for the log, without text of the query: a `;` (a separator for some), a `#`, a
/// name or a value that is read and is not percent-encoded UTF-8, a repeated parameter that is read, or another
/// parameter whose name some programs fold to one that is read.
pub fn form<'a>(query: &'a [u8], read: &Members) -> Result<Vec<Parameter<'a>>, String> {
    if query.iter().any(|byte| matches!(byte, b';' | b'#')) {
        return Err("the query contains a `;` or a `#`, which some programs take for a separator or the end"
            .to_owned());
    }
    let folded_reads: Vec<String> = read.names.iter().map(|name| folded(name)).collect();
    let mut found: Vec<Parameter<'a>> = Vec::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for pair in query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let name =
            decoded(halves.next().unwrap_or_default()).ok_or("the name of a parameter is not UTF-8")?;
        let folded_name = folded(&name);
        if read.has(&name) {
            if seen.contains(&folded_name) || (read.all && folded_name != name.to_lowercase()) {
                return Err("a parameter is repeated, or has a name that some programs fold".to_owned());
            }
            let value = decoded(halves.next().unwrap_or_default());
            found.push((name, value.ok_or("the value of a parameter is not UTF-8")?));
            seen.insert(folded_name);
        } else if folded_reads.contains(&folded_name) {
            return Err(
                "some programs fold the name of a parameter to one that the condition reads".to_owned()
            );
        }
    }
    Ok(found)
}

/// A name or a value without its encoding; `None` if programs differ about it.
fn decoded(text: &[u8]) -> Option<Cow<'_, str>> {
    let is_encoded =
        |at: usize| text.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if (0..text.len()).any(|at| text.get(at) == Some(&b'%') && !is_encoded(at)) {
        return None;
    }
    if !text.contains(&b'+') {
        return percent_decode(text).decode_utf8().ok();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    let text = percent_decode(&spaced).decode_utf8().ok()?.into_owned();
    Some(Cow::Owned(text))
}

/// A name as the programs that fold most would read it: PHP cuts it at a NUL, strips leading spaces, reads the part
/// before `[` and turns spaces and dots into `_`; ASP.NET ignores its case.
pub fn folded(name: &str) -> String {
    let name = name.split('\0').next().unwrap_or_default().trim_start_matches(' ');
    let base = match name.find('[') {
        Some(at) if at > 0 && name.contains(']') => name.get(..at).unwrap_or_default(),
        _ => name,
    };
    base.chars()
        .map(|letter| if matches!(letter, ' ' | '.' | '[') { '_' } else { letter })
        .collect::<String>()
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(names: &[&str]) -> Members {
        Members { all: false, names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_query_is_read_as_forms_are() {
        let role = |value: &'static str| Some(vec![("role", value)]);
        for (query, expected) in [
            ("role=admin", role("admin")),
            ("role=super+admin", role("super admin")),
            ("role=super%20admin%2B", role("super admin+")),
            ("%72ole=admin", role("admin")),
            ("&&x=1&role=a=b&y", role("a=b")),
            ("role", role("")),
            ("role=", role("")),
            ("x=1", Some(vec![])),
            ("", Some(vec![])),
            ("x=%ff&x=1&y=%zz&role=a", role("a")),
            ("roles=b&role=a", role("a")),
            ("role=a&role=a", None),
            ("role=a&role=b", None),
            ("role=a&%72ole=b", None),
            ("role=a;x=1", None),
            ("x=1;role=a", None),
            ("role=a#b", None),
            ("role=%ff", None),
            ("role=%zz", None),
            ("role=%", None),
            ("role=a&%ff=1", None),
            ("Role=a", None),
            ("role=a&+role=b", None),
            ("role=a&role[]=b", None),
            ("role%00x=b", None),
        ] {
            let read = reading(&["role"]);
            let form = form(query.as_bytes(), &read).ok();
            let form: Option<Vec<(&str, &str)>> =
                form.as_ref().map(|form| form.iter().map(|(name, value)| (&**name, &**value)).collect());
            assert_eq!(form, expected, "{query}");
        }
    }

    #[test]
    fn a_parameter_with_a_folded_name_makes_the_query_ambiguous() {
        for (read, query) in [
            ("tenant_id", "tenant.id=a"),
            ("tenant_id", "tenant+id=a"),
            ("tenant_id", "tenant[id=a"),
            ("tenant_id", "tenant_id[0]=a"),
            ("tenant_id", "TENANT_ID=a"),
            ("tenant.id", "tenant_id=a"),
        ] {
            assert!(form(query.as_bytes(), &reading(&[read])).is_err(), "{query}");
        }
    }

    #[test]
    fn if_every_parameter_may_be_read_no_name_may_be_foldable() {
        let all = Members { all: true, ..Members::default() };
        for (query, expected) in [("a=1&b=2", true), ("a=1&A=2", false), ("a.b=1", false), ("a[]=1", false)] {
            assert_eq!(form(query.as_bytes(), &all).is_ok(), expected, "{query}");
        }
    }
}
