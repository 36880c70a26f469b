//! Element-wise loops compiled for any CPU and for wide vectors, chosen at run time.

/// Makes a function of plain loops that runs on the widest vectors that this CPU and this compiler have for them. What it
/// calls must always be inlined: a call that stays one is compiled for any CPU.
///
/// The arithmetic is the same in all versions, operation by operation: wider vectors change no bit. `mul_add` is one
/// instruction in the versions for vectors, and a slow call in the one for any CPU.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        $vis fn $name($($argument: $type),*) {
            #[inline(always)]
            fn plain($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw")]
                fn with_avx512($($argument: $type),*) {
                    plain($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $type),*) {
                    plain($($argument),*)
                }

                if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw") {
                    // SAFETY: AVX-512 was just detected.
                    #[allow(unsafe_code)]
                    return unsafe { with_avx512($($argument),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: AVX2 and FMA were just detected.
                    #[allow(unsafe_code)]
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}

pub(in crate::device) use vectorised;
