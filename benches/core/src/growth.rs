//! How a cost grows with a size: its points, the exponent of its growth, the table and the plot.

pub mod plot;

/// Growth below this factor, over all sizes, is none: it is within the noise.
const NOISE: f64 = 1.3;

/// The cost of one operation at sizes that are each the same multiple of the one before.
#[derive(Clone, Debug)]
pub struct Growth {
    /// What grows.
    pub name: String,
    /// Size, and nanoseconds.
    pub points: Vec<(usize, f64)>,
}

impl Growth {
    /// The exponent of the part that grows: 1 is linear, 2 quadratic. It is that of `a + b * size^exponent`, with the least
    /// squares of the relative errors. `None` if the cost does not grow.
    pub fn exponent(&self) -> Option<f64> {
        let exponents = (1..=30).map(|tenths| f64::from(tenths) / 10.0);
        let best = exponents.min_by(|a, b| self.error(*a).total_cmp(&self.error(*b)));
        best.filter(|_| self.factor() > NOISE)
    }

    /// The sum of the squares of the relative errors that the best `a` and `b` leave for this exponent.
    fn error(&self, exponent: f64) -> f64 {
        // The normal equations of `a / cost + b * size^exponent / cost = 1`.
        let terms =
            || self.points.iter().map(|(size, cost)| (1.0 / cost, (*size as f64).powf(exponent) / cost));
        let sum = |of: fn((f64, f64)) -> f64| terms().map(of).sum::<f64>();
        let (uu, uv, vv) = (sum(|(u, _)| u * u), sum(|(u, v)| u * v), sum(|(_, v)| v * v));
        let (u, v) = (sum(|(u, _)| u), sum(|(_, v)| v));
        let determinant = uu * vv - uv * uv;
        let (a, b) = ((u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant);
        terms().map(|(u, v)| (a * u + b * v - 1.0).powi(2)).sum()
    }

    /// Nanoseconds for each one more, over all sizes.
    pub fn each(&self) -> f64 {
        match self.points[..] {
            [(small, a), .., (large, b)] => (b - a) / (large - small) as f64,
            _ => 0.0,
        }
    }

    /// How many times the cost of the smallest size that of the largest is.
    pub fn factor(&self) -> f64 {
        match self.points[..] {
            [(_, a), .., (_, b)] => b / a,
            _ => 1.0,
        }
    }
}

/// A table of these growths, in Markdown.
pub fn table(growths: &[Growth]) -> String {
    let mut text = String::from(
        "| what grows | from | to | µs at first | µs at last | times | ns for one more | exponent |\n|---|---|---|---|---|---|---|---|\n",
    );
    for growth in growths {
        let [(small, a), .., (large, b)] = growth.points[..] else { continue };
        let exponent = growth.exponent().map_or("-".to_owned(), |exponent| format!("{exponent:.1}"));
        let line = format!(
            "| {} | {small} | {large} | {:.1} | {:.1} | {:.2} | {:.1} | {exponent} |\n",
            growth.name,
            a / 1e3,
            b / 1e3,
            growth.factor(),
            growth.each(),
        );
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(cost: impl Fn(f64) -> f64) -> Growth {
        let points = [1, 2, 4, 8, 16, 32, 64].map(|size| (size, cost(size as f64)));
        Growth { name: "size".to_owned(), points: points.to_vec() }
    }

    #[test]
    fn the_exponent_is_that_of_the_part_that_grows() {
        for (grown, expected) in [
            (growth(|_| 5.0), None),
            (growth(|n| 100.0 + n), Some("1.0")),
            (growth(|n| 100.0 + n * n), Some("2.0")),
            (growth(|n| 1_000.0 + n), None),
        ] {
            let exponent = grown.exponent().map(|exponent| format!("{exponent:.1}"));
            assert_eq!(exponent.as_deref(), expected, "{grown:?}");
        }
    }
}
