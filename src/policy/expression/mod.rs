//! The condition of a rule: CEL over one request, evaluated in bounded time.

mod evaluate;
mod node;
mod number;
mod read;
mod value;

#[cfg(test)]
mod tests;

pub use self::evaluate::{Failure, MAX_STEPS, Variables};
use self::node::Node;
use super::words::Sentence;

/// Most steps of all expressions of a policy over one request. Past it, every further expression fails.
pub const MAX_STEPS_OF_ALL: usize = 4 * MAX_STEPS;

/// A compiled condition.
#[derive(Debug)]
pub struct Expression(Node);

impl Expression {
    /// Reads and compiles the text of a condition.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, Sentence> {
        read::read(text).map(Self)
    }

    /// Whether the condition is true of a request. `steps` is how many steps all expressions together
    /// may still take.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be evaluated.
    pub fn is_true<'a>(
        &'a self,
        variables: &Variables<'a>,
        steps: &mut usize,
    ) -> Result<bool, Failure> {
        let mut own = MAX_STEPS.min(*steps);
        let before = own;
        let result = evaluate::is_true(&self.0, variables, &mut own);
        *steps -= before - own;
        result
    }
}
