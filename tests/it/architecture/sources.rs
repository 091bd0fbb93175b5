//! The sources of a crate as syntax: the paths that a file names, and other facts that the rules check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Attribute, ExprAsync, ExprAwait, ExprMethodCall, ImplItemFn, Item, ItemFn, ItemMod, Macro, Signature,
    UseTree,
};

/// A file and its contents, without items that are compiled only for tests.
pub struct Source {
    /// Its path relative to the crate's `src/`.
    pub file: String,
    pub text: String,
    /// The module path from the crate root to this module.
    pub module: Vec<String>,
    /// Paths of this crate that it names, from the crate root: `super::keys::fetch` is `keys`, `fetch`.
    pub own: BTreeSet<Vec<String>>,
    /// All other paths, as written; those of macros end with `!`.
    pub others: BTreeSet<Vec<String>>,
    /// Methods that it calls.
    pub methods: BTreeSet<String>,
    /// Whether it has async code.
    pub is_async: bool,
}

impl Source {
    /// # Panics
    /// The text is not valid Rust.
    pub fn of(file: &str, text: &str) -> Self {
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let module = module_of(file);
        let mut reader =
            Reader { module: module.clone(), children: children(&parsed.items), ..Reader::default() };
        reader.visit_file(&parsed);
        let Reader { own, others, methods, is_async, .. } = reader;
        Self { file: file.to_owned(), text: text.to_owned(), module, own, others, methods, is_async }
    }

    /// Its top-level module: the first module below the root; empty for `lib.rs`.
    pub fn top_module(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }

    /// Whether it is in this module, such as `keys` or `keys/http`.
    pub fn is_in(&self, module: &str) -> bool {
        let wanted: Vec<&str> = module.split('/').collect();
        self.module.len() >= wanted.len() && self.module.iter().zip(&wanted).all(|(is, wanted)| is == wanted)
    }

    /// Whether it names a path with this prefix, for example `std::fs`.
    pub fn names(&self, path: &str) -> bool {
        let wanted: Vec<&str> = path.split("::").collect();
        self.others.iter().any(|path| {
            path.len() >= wanted.len() && path.iter().zip(&wanted).all(|(is, wanted)| is == wanted)
        })
    }
}

/// Every source file of the crate in this folder, without test modules.
pub fn sources_of(folder: &str) -> Vec<Source> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a folder of the sources can be read") {
            let path = entry.expect("an entry of a folder can be read").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(!files.is_empty(), "{folder} has no sources");
    files.sort();
    let read = |file: PathBuf| {
        let name = file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
        Source::of(&name, &fs::read_to_string(file).expect("a source file can be read"))
    };
    // Test modules: declared under `cfg(test)` by their parent.
    let is_test = |file: &PathBuf| file.file_name().is_some_and(|name| name == "tests.rs");
    files.into_iter().filter(|file| !is_test(file)).map(read).collect()
}

fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

fn children(items: &[Item]) -> BTreeSet<String> {
    let module = |item: &Item| match item {
        Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    };
    items.iter().filter_map(module).collect()
}

#[derive(Default)]
struct Reader {
    module: Vec<String>,
    /// Modules that the current module declares.
    children: BTreeSet<String>,
    own: BTreeSet<Vec<String>>,
    others: BTreeSet<Vec<String>>,
    methods: BTreeSet<String>,
    is_async: bool,
}

impl Reader {
    fn record(&mut self, path: Vec<String>) {
        let mut rest = &path[..];
        let mut from = match rest {
            [first, ..] if first == "crate" => Vec::new(),
            [first, ..] if first == "self" || first == "super" => self.module.clone(),
            [first, ..] if self.children.contains(first) => self.module.clone(),
            _ => {
                self.others.insert(path);
                return;
            }
        };
        while let [first, others @ ..] = rest {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(from.pop()),
                _ => break,
            }
            rest = others;
        }
        from.extend_from_slice(rest);
        self.own.insert(from);
    }

    fn record_use(&mut self, prefix: &[String], tree: &UseTree) {
        let mut path = prefix.to_vec();
        match tree {
            UseTree::Path(step) => {
                path.push(step.ident.to_string());
                self.record_use(&path, &step.tree);
            }
            UseTree::Name(name) if name.ident == "self" => self.record(path),
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.record(path);
            }
            UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.record(path);
            }
            UseTree::Glob(_) => self.record(path),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.record_use(prefix, tree)),
        }
    }

    /// Names joined by `::`, anywhere in the arguments of a macro.
    fn record_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut all: Vec<Vec<String>> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        all.push(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Punct(punct) if punct.as_char() == '!' && !path.is_empty() => {
                    if let Some(last) = path.last_mut() {
                        last.push('!');
                    }
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    all.push(std::mem::take(&mut path));
                    self.record_tokens(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    all.push(std::mem::take(&mut path));
                    colons = 0;
                }
            }
        }
        all.push(path);
        all.into_iter()
            .filter(|path| path.len() > 1 || path.last().is_some_and(|last| last.ends_with('!')))
            .for_each(|path| self.record(path));
    }
}

/// Whether this is compiled only for tests.
fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let Some((_, items)) = &item.content else { return };
        let outside = std::mem::replace(&mut self.children, children(items));
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
        self.children = outside;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.record_use(&[], &item.tree);
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if !is_test_only(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.is_async |= signature.asyncness.is_some();
        visit::visit_signature(self, signature);
    }

    fn visit_expr_async(&mut self, block: &'ast ExprAsync) {
        self.is_async = true;
        visit::visit_expr_async(self, block);
    }

    fn visit_expr_await(&mut self, wait: &'ast ExprAwait) {
        self.is_async = true;
        visit::visit_expr_await(self, wait);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // A single name is local or was imported by a `use`.
        if path.segments.len() > 1 {
            self.record(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(super)` and `pub(crate)` are not dependencies.
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let mut path: Vec<String> =
            call.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let Some(last) = path.last_mut() {
            last.push('!');
        }
        self.record(path);
        self.record_tokens(call.tokens.clone());
    }
}
