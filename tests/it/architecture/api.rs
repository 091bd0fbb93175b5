//! The public API of a crate as text: each public item without its docs, body and private parts, and the traits that its types
//! implement.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::{
    Attribute, Fields, FieldsNamed, File, ImplItem, Item, ItemImpl, ItemMod, TraitItem, Type, UseTree,
    Visibility, parse_quote,
};

use super::sources::{Source, sources_of};

/// The public API of the crate in this folder.
pub fn api_of(folder: &str) -> String {
    let sources = sources_of(folder);
    listed(&sources)
}

/// The public API that these sources have.
pub fn listed(sources: &[Source]) -> String {
    let parsed = sources.iter().map(|source| {
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.file));
        (source.module.clone(), file.items)
    });
    let mut api = Api { modules: parsed.collect(), names: BTreeSet::new() };
    let mut items = api.items_of(&[]);
    items.extend(api.implementations());
    prettyplease::unparse(&File { shebang: None, attrs: Vec::new(), items })
}

/// The path of the API list of the crate in this folder.
pub fn file_of(folder: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("public-api.txt")
}

/// The public items and methods of these sources whose docs have no example.
pub fn without_example(sources: &[Source]) -> Vec<String> {
    let mut lacking = Vec::new();
    for source in sources {
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.file));
        let mut look = |name: String, visibility: &Visibility, attributes: &[Attribute]| {
            if is_public(visibility) && !has_example(attributes) {
                lacking.push(format!("{}: {name}", source.file));
            }
        };
        for item in &file.items {
            match item {
                Item::Fn(item) => look(item.sig.ident.to_string(), &item.vis, &item.attrs),
                Item::Struct(item) => look(item.ident.to_string(), &item.vis, &item.attrs),
                Item::Enum(item) => look(item.ident.to_string(), &item.vis, &item.attrs),
                Item::Trait(item) => look(item.ident.to_string(), &item.vis, &item.attrs),
                Item::Type(item) => look(item.ident.to_string(), &item.vis, &item.attrs),
                Item::Impl(block) => {
                    for item in &block.items {
                        if let ImplItem::Fn(item) = item {
                            look(item.sig.ident.to_string(), &item.vis, &item.attrs);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    lacking
}

fn has_example(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => {
            matches!(&pair.value, syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) if text.value().trim() == "```")
        }
        _ => false,
    })
}

struct Api {
    modules: BTreeMap<Vec<String>, Vec<Item>>,
    /// The types and traits that were listed.
    names: BTreeSet<String>,
}

impl Api {
    /// The public items of a module, including those of its public modules and its re-exports.
    fn items_of(&mut self, module: &[String]) -> Vec<Item> {
        let items = self.modules.get(module).cloned().unwrap_or_default();
        self.public(&items, module)
    }

    fn public(&mut self, items: &[Item], module: &[String]) -> Vec<Item> {
        let mut public = Vec::new();
        for item in items.iter().filter(|item| !is_test_only(attributes(item))) {
            match item {
                Item::Mod(inner) if is_public(&inner.vis) => public.push(self.module(inner, module)),
                Item::Use(handed) if is_public(&handed.vis) => {
                    for path in leaves(&handed.tree) {
                        public.extend(self.reexported(&path, module));
                    }
                }
                other => public.extend(self.stub(other)),
            }
        }
        public
    }

    fn module(&mut self, inner: &ItemMod, module: &[String]) -> Item {
        let mut path = module.to_vec();
        path.push(inner.ident.to_string());
        let items = match &inner.content {
            Some((_, items)) => self.public(items, &path),
            None => self.items_of(&path),
        };
        let name = &inner.ident;
        parse_quote!(pub mod #name { #(#items)* })
    }

    /// A re-exported item of a module of this crate; for another crate, only the path.
    fn reexported(&mut self, path: &[String], module: &[String]) -> Vec<Item> {
        let (name, from) = path.split_last().expect("a path has a name");
        let from: Vec<String> = match from.split_first() {
            Some((first, rest)) if first == "self" => module.iter().chain(rest).cloned().collect(),
            Some((first, _))
                if self.modules.contains_key(&[module, std::slice::from_ref(first)].concat()) =>
            {
                module.iter().chain(from).cloned().collect()
            }
            Some((first, rest)) if first == "crate" => rest.to_vec(),
            _ => {
                let path: syn::Path = syn::parse_str(&path.join("::")).expect("a path");
                return vec![parse_quote!(pub use #path;)];
            }
        };
        let items = self.modules.get(&from).cloned().unwrap_or_default();
        let mut found: Vec<Item> = Vec::new();
        for item in &items {
            match item {
                Item::Use(handed) => {
                    for deeper in leaves(&handed.tree).filter(|deeper| deeper.last() == Some(name)) {
                        found.extend(self.reexported(&deeper, &from));
                    }
                }
                item if name_of(item).as_ref() == Some(name) => found.extend(self.stub(item)),
                _ => {}
            }
        }
        assert!(!found.is_empty(), "{} hands on {path:?}, which is not found", module.join("::"));
        found
    }

    /// A public item without its docs, its body and its private parts.
    fn stub(&mut self, item: &Item) -> Option<Item> {
        let mut item = item.clone();
        match &mut item {
            Item::Fn(function) if is_public(&function.vis) => {
                function.block = parse_quote!({});
                keep_attributes(&mut function.attrs);
            }
            Item::Struct(record) if is_public(&record.vis) => {
                keep_attributes(&mut record.attrs);
                let has_private = keep_public(&mut record.fields);
                if has_private {
                    record.attrs.insert(0, parse_quote!(#[doc = " Has private fields."]));
                }
            }
            Item::Enum(choice) if is_public(&choice.vis) => {
                keep_attributes(&mut choice.attrs);
                for variant in &mut choice.variants {
                    keep_attributes(&mut variant.attrs);
                    variant.fields.iter_mut().for_each(|field| keep_attributes(&mut field.attrs));
                }
            }
            Item::Trait(contract) if is_public(&contract.vis) => {
                keep_attributes(&mut contract.attrs);
                contract.items.iter_mut().for_each(without_body);
            }
            Item::Const(constant) if is_public(&constant.vis) => keep_attributes(&mut constant.attrs),
            Item::Static(shared) if is_public(&shared.vis) => keep_attributes(&mut shared.attrs),
            Item::Type(alias) if is_public(&alias.vis) => keep_attributes(&mut alias.attrs),
            _ => return None,
        }
        self.names.extend(name_of(&item));
        Some(item)
    }

    /// The trait implementations of the listed types, from anywhere in the crate.
    fn implementations(&self) -> Vec<Item> {
        let all = self.modules.values().flatten().filter_map(|item| match item {
            Item::Impl(block) if !is_test_only(&block.attrs) => self.implementation(block),
            _ => None,
        });
        let written = all.map(|block| {
            let text =
                prettyplease::unparse(&File { shebang: None, attrs: Vec::new(), items: vec![block.clone()] });
            (text, block)
        });
        written.collect::<BTreeMap<String, Item>>().into_values().collect()
    }

    fn implementation(&self, block: &ItemImpl) -> Option<Item> {
        let Type::Path(whose) = &*block.self_ty else { return None };
        let name = whose.path.segments.last()?.ident.to_string();
        // An unlisted trait of the crate itself is private.
        let is_listed = self.names.contains(&name);
        let mut block = block.clone();
        keep_attributes(&mut block.attrs);
        if block.trait_.is_some() {
            block.items.retain(|item| matches!(item, ImplItem::Type(_)));
        } else {
            block.items.retain_mut(keep_public_member);
            if block.items.is_empty() {
                return None;
            }
        }
        is_listed.then_some(Item::Impl(block))
    }
}

/// Keeps the public member of an inherent implementation, without its body.
fn keep_public_member(item: &mut ImplItem) -> bool {
    match item {
        ImplItem::Fn(function) => {
            function.block = parse_quote!({});
            keep_attributes(&mut function.attrs);
            is_public(&function.vis)
        }
        ImplItem::Const(constant) => {
            keep_attributes(&mut constant.attrs);
            is_public(&constant.vis)
        }
        _ => false,
    }
}

fn without_body(item: &mut TraitItem) {
    if let TraitItem::Fn(function) = item {
        keep_attributes(&mut function.attrs);
        if function.default.is_some() {
            function.default = Some(parse_quote!({}));
        }
    }
}

/// Keeps only the public fields; returns whether there were others.
fn keep_public(fields: &mut Fields) -> bool {
    let before = fields.len();
    match fields {
        Fields::Named(FieldsNamed { named, .. }) => {
            let public = std::mem::take(named).into_iter().filter(|field| is_public(&field.vis));
            *named = public.collect();
        }
        Fields::Unnamed(unnamed) if unnamed.unnamed.iter().any(|field| !is_public(&field.vis)) => {
            *fields = Fields::Unit;
        }
        Fields::Unnamed(_) | Fields::Unit => {}
    }
    fields.iter_mut().for_each(|field| keep_attributes(&mut field.attrs));
    fields.len() < before
}

/// Keeps the attributes that users of the item depend on.
fn keep_attributes(attributes: &mut Vec<Attribute>) {
    const KEPT: [&str; 4] = ["derive", "non_exhaustive", "must_use", "cfg"];
    attributes.retain(|attribute| KEPT.iter().any(|kept| attribute.path().is_ident(kept)));
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tests: syn::Ident = parse_quote!(test);
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|of| of == tests)
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    Some(match item {
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Const(item) => item.ident.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// Every path that a `use` names.
fn leaves(tree: &UseTree) -> impl Iterator<Item = Vec<String>> {
    fn walk(tree: &UseTree, prefix: &[String], found: &mut Vec<Vec<String>>) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => walk(&path.tree, &with(&path.ident), found),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, prefix, found)),
            UseTree::Name(name) => found.push(with(&name.ident)),
            UseTree::Rename(rename) => found.push(with(&rename.ident)),
            UseTree::Glob(_) => found.push([prefix, &["*".to_owned()]].concat()),
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found.into_iter()
}
