//! T5's relative position bias: what is added to the score of a query and a key depends on how far apart they are.
//!
//! Distances fall into buckets: near ones have one each, far ones share ever wider ones, and half of all buckets are
//! for keys behind the query. Source: Raffel et al. 2020, section 2.1; `T5Attention._relative_position_bucket` in
//! `transformers/models/t5/modeling_t5.py`.

use candle_core::Tensor;

use super::T5Config;
use crate::Result;

/// The bucket of the signed distance from a query to a key, in tokens.
///
/// `buckets` (a multiple of 4) and `max_distance` (more than `buckets / 4`) are those of a checked config. Computed in
/// f32, as the reference computes it: where it rounds down at a bucket's border, so does this.
pub(super) fn bucket(distance: i64, buckets: usize, max_distance: usize) -> usize {
    let one_side = buckets / 2;
    let first = if distance > 0 { one_side } else { 0 };
    let (distance, exact) = (distance.unsigned_abs() as usize, one_side / 2);
    if distance < exact {
        return first + distance;
    }
    let farther = (distance as f32 / exact as f32).ln();
    let range = (max_distance as f64 / exact as f64).ln() as f32;
    let wide = (farther / range * (one_side - exact) as f32) as usize;
    first + (exact + wide).min(one_side - 1)
}

/// The bias of all queries and keys, `(heads, tokens, tokens)`; `table`: `(buckets, heads)`.
pub(super) fn position_bias(table: &Tensor, config: &T5Config, tokens: usize) -> Result<Tensor> {
    let (buckets, farthest) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
    // Of the distances -(tokens - 1) ..= tokens - 1, those of one query are a window.
    let span = 2 * tokens - 1;
    let by_distance: Vec<u32> =
        (0..span).map(|i| bucket(i as i64 + 1 - tokens as i64, buckets, farthest) as u32).collect();
    let rows: Vec<u32> =
        (0..tokens).rev().flat_map(|start| by_distance[start..start + tokens].iter().copied()).collect();
    let rows = Tensor::from_vec(rows, tokens * tokens, table.device())?;
    let by_head = table.t()?.contiguous()?.index_select(&rows, 1)?;
    Ok(by_head.reshape((config.num_heads, tokens, tokens))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};

    use super::*;

    /// Where a bucket begins in transformers' function, as `tests/reference/t5.py` prints it.
    #[test]
    fn buckets_begin_where_the_reference_has_them() {
        for (buckets, farthest, begins) in
            [(32, 128, vec![1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]), (8, 20, vec![1, 2, 7])]
        {
            for distance in 0..5000 {
                let expected = begins.iter().filter(|b| **b <= distance).count();
                assert_eq!(bucket(-distance, buckets, farthest), expected, "{distance} behind");
                let ahead = if distance == 0 { 0 } else { buckets / 2 + expected };
                assert_eq!(bucket(distance, buckets, farthest), ahead, "{distance} ahead");
            }
        }
    }

    #[test]
    fn a_head_query_and_key_has_the_tables_entry() {
        let config = T5Config { num_heads: 3, ..T5Config::xxl() };
        let table = Tensor::arange(0f32, 96.0, &Device::Cpu).unwrap().reshape((32, 3)).unwrap();
        let bias = position_bias(&table, &config, 40).unwrap();
        assert_eq!(bias.dims(), [3, 40, 40]);
        for (head, query, key) in [(0, 0, 0), (2, 0, 39), (1, 39, 0), (2, 17, 20), (1, 20, 17), (0, 5, 13)] {
            let expected = 3 * bucket(key as i64 - query as i64, 32, 128) + head;
            let value = bias.i((head, query, key)).unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(value, expected as f32, "{head} {query} {key}");
        }
        assert_eq!(position_bias(&table, &config, 1).unwrap().dims(), [3, 1, 1]);
    }
}
