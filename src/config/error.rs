//! stub
#[derive(Debug)]
pub struct ConfigErrors;
#[derive(Debug)]
pub struct ConfigError;
impl ConfigErrors {
    pub fn iter(&self) -> std::iter::Empty<String> {
        std::iter::empty()
    }
}
impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
