//! The three stages of the small synthetic policy: bf16 beside f32, the baseline, in one run.

use criterion::{Criterion, criterion_group, criterion_main};
use tensact_benches::small_policy;
use tensact_runtime::device::host::ComputeDtype;
use tensact_topology::Variant;

fn stages(criterion: &mut Criterion) {
    for variant in [Variant::Pi0, Variant::Pi05] {
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let (policy, sample) = small_policy(variant, dtype);
            let inputs = [&sample.input];
            let images = policy.see(&inputs).expect("the sample fits the policy");
            let caches = policy.read(&inputs, &images).expect("the sample fits the policy");
            let mut group = criterion.benchmark_group(format!("{variant} small"));
            group.sample_size(10);
            group.bench_function(format!("vision {dtype}"), |bench| {
                bench.iter(|| policy.see(&inputs));
            });
            group.bench_function(format!("prefix {dtype}"), |bench| {
                bench.iter(|| policy.read(&inputs, &images));
            });
            group.bench_function(format!("denoise {dtype}"), |bench| {
                bench.iter(|| policy.denoise(std::slice::from_ref(&sample), caches.clone()));
            });
        }
    }
}

criterion_group!(benches, stages);
criterion_main!(benches);
