//! Element-wise functions, written without branches so that they become vector instructions in loops that are
//! [`vectorised`].

use super::vectorise::vectorised;

/// 1.5 · 2^23: adding it leaves the nearest integer in the low bits of the sum.
const SHIFT: f32 = 12_582_912.0;

/// `e^x`, accurate to 2 units in the last place; arguments below -87 give the smallest normal numbers, above 88 the
/// largest. Reduction and polynomial as in Cephes' `expf` (Moshier).
#[inline(always)]
pub(in crate::device) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    times_power_of_two(p.mul_add(r * r, r) + 1.0, shifted)
}

/// `2^x`, likewise between -126 and 127; the polynomial is that of Cephes' `exp2f`.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = x.clamp(-126.0, 127.0);
    let shifted = x + SHIFT;
    let r = x - (shifted - SHIFT);
    let mut p = 1.535_336_2e-4f32;
    for coefficient in
        [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 0.240_226_48, std::f32::consts::LN_2, 1.0]
    {
        p = p.mul_add(r, coefficient);
    }
    times_power_of_two(p, shifted)
}

/// A number near one times two to the power of the integer that was shifted.
#[inline(always)]
fn times_power_of_two(p: f32, shifted: f32) -> f32 {
    let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()) << 23;
    f32::from_bits(p.to_bits().wrapping_add(exponent))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(in crate::device) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

vectorised! {
    /// [`silu`] of each.
    pub(in crate::device) fn silu_all(values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = silu(*x));
    }
}

/// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, as `x · sigmoid` of twice that argument, which loses no digits
/// where tanh nears -1.
#[inline(always)]
pub(in crate::device) fn gelu_tanh(x: f32) -> f32 {
    /// `-2 √(2/π) log₂ e`.
    const FACTOR: f32 = -2.302_208_2;
    x / (1.0 + exp2(x * (x * x).mul_add(0.044_715 * FACTOR, FACTOR)))
}

vectorised! {
    /// [`gelu_tanh`] of each.
    pub(in crate::device) fn gelu_all(values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = gelu_tanh(*x));
    }
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(in crate::device) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { bits | 0x0040_0000 } else { rounded })
}

vectorised! {
    /// See [`round_to_bf16`].
    pub(in crate::device) fn round_all_to_bf16(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = round_to_bf16(*value));
    }
}

/// The nearest bf16's bits; see [`round_to_bf16`].
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    (round_to_bf16(x).to_bits() >> 16) as u16
}

/// Two values rounded to bf16 in a word, the first one in the lower half.
#[inline(always)]
pub(in crate::device) fn bf16_pair(low: f32, high: f32) -> u32 {
    u32::from(bf16_bits(low)) | u32::from(bf16_bits(high)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn close(found: f32, expected: f64, relative: f64) -> bool {
        (f64::from(found) - expected).abs() <= relative * expected.abs() + 1e-37
    }

    proptest! {
        #[test]
        fn exp_is_accurate(x in -86.0f32..88.0) {
            prop_assert!(close(exp(x), f64::from(x).exp(), 2.5e-7), "{} {}", exp(x), f64::from(x).exp());
        }

        #[test]
        fn gelu_and_silu_are_accurate(x in -12.0f32..12.0) {
            let y = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
            let gelu = y / (1.0 + (-2.0 * inner).exp());
            // The argument's own rounding grows with its size, so far tails are compared absolutely.
            prop_assert!((f64::from(gelu_tanh(x)) - gelu).abs() <= 1e-6 * gelu.abs() + 1e-9);
            prop_assert!(close(silu(x), y / (1.0 + (-y).exp()), 2e-6));
        }

        #[test]
        fn rounding_is_that_of_half(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let (found, expected) = (round_to_bf16(x), bf16::from_f32(x).to_f32());
            prop_assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()));
        }
    }

    #[test]
    fn extremes_stay_finite_and_nan_stays_nan() {
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) > 0.0);
        assert!(gelu_tanh(f32::NAN).is_nan() && silu(f32::NAN).is_nan() && round_to_bf16(f32::NAN).is_nan());
        assert_eq!(gelu_tanh(1e4), 1e4);
        assert!(gelu_tanh(-1e4).abs() < 1e-30);
    }
}
