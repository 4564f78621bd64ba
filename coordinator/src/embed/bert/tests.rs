use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, HiddenAct};

use super::*;

const SMALL: BertShape = BertShape {
    vocabulary: 50,
    hidden: 24,
    layers: 2,
    heads: 3,
    intermediate: 48,
    positions: 16,
    layer_norm_eps: 1e-12,
};

fn reference_config(shape: BertShape) -> Config {
    Config {
        vocab_size: shape.vocabulary,
        hidden_size: shape.hidden,
        num_hidden_layers: shape.layers,
        num_attention_heads: shape.heads,
        intermediate_size: shape.intermediate,
        hidden_act: HiddenAct::Gelu,
        max_position_embeddings: shape.positions,
        type_vocab_size: 2,
        layer_norm_eps: f64::from(shape.layer_norm_eps),
        ..Config::default()
    }
}

/// Weights from a fixed sequence, large enough that attention is far from uniform.
fn small_weights() -> Vec<u8> {
    let mut state = 42_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.9
    };
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).expect("shape fits"));
    };
    let (hidden, wide) = (SMALL.hidden, SMALL.intermediate);
    put("embeddings.word_embeddings.weight".into(), &[SMALL.vocabulary, hidden]);
    put("embeddings.position_embeddings.weight".into(), &[SMALL.positions, hidden]);
    put("embeddings.token_type_embeddings.weight".into(), &[2, hidden]);
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..SMALL.layers {
        let prefix = format!("encoder.layer.{layer}");
        for (name, rows, columns) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", wide, hidden),
            ("output.dense", hidden, wide),
        ] {
            put(format!("{prefix}.{name}.weight"), &[rows, columns]);
            put(format!("{prefix}.{name}.bias"), &[rows]);
        }
        norms.push(format!("{prefix}.attention.output.LayerNorm"));
        norms.push(format!("{prefix}.output.LayerNorm"));
    }
    for norm in norms {
        put(format!("{norm}.weight"), &[hidden]);
        put(format!("{norm}.bias"), &[hidden]);
    }
    let dir = tempfile::tempdir().expect("scratch directory");
    let path = dir.path().join("weights.safetensors");
    candle_core::safetensors::save(&tensors, &path).expect("saves");
    std::fs::read(path).expect("reads back")
}

/// The library's model on one text, pooled as the sentence-transformers recipe says.
fn reference(model: &BertModel, text: &[u32]) -> Vec<f32> {
    let ids = Tensor::new(text, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("ids");
    let states = model.forward(&ids, &ids.zeros_like().expect("types"), None).expect("forward");
    let mut mean = states.i(0).and_then(|states| states.mean(0)).and_then(|mean| mean.to_vec1()).expect("mean");
    normalize(&mut mean);
    mean
}

#[test]
fn ragged_batch_equals_the_library_text_by_text() {
    let bytes = small_weights();
    let bert = Bert::load(&bytes, SMALL).expect("loads");
    let weights = VarBuilder::from_slice_safetensors(&bytes, DType::F32, &Device::Cpu).expect("reads");
    let library = BertModel::load(weights, &reference_config(SMALL)).expect("library loads");
    let texts = vec![vec![1, 2, 3], vec![49], vec![7; 16], vec![5, 4, 3, 2, 1, 0, 9], vec![1, 2, 3]];
    let batch = bert.embed(&texts).expect("embeds");
    for (text, vector) in texts.iter().zip(&batch) {
        let expected = reference(&library, text);
        for (ours, theirs) in vector.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-5, "{text:?}: {ours} {theirs}");
        }
    }
    let apart = batch[0].iter().zip(&batch[3]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(apart > 1e-3, "the check must be able to tell texts apart: {apart}");
}

#[test]
fn what_is_out_of_range_is_an_error() {
    let bert = Bert::load(&small_weights(), SMALL).expect("loads");
    for bad in [vec![], vec![50], vec![u32::MAX], vec![1; 17]] {
        assert!(bert.embed(&[vec![1], bad.clone()]).is_err(), "{bad:?}");
    }
    assert!(bert.embed(&[]).expect("nothing asked").is_empty());
}

#[test]
fn erf_is_close_enough() {
    let worst = (-60_000..60_000)
        .map(|step| step as f32 / 10_000.0)
        .map(|x| (f64::from(erf(x)) - candle_core::cpu::erf::erf_f64(f64::from(x))).abs())
        .fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst}");
}
