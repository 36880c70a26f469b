// What an operation would take of a core's memory, without running it.
#pragma once

#include <memory>

#include "ttnn-sys/src/shim/tensor.hpp"

namespace ttnn::graph {
class ScopedGraphCapture;
}

namespace ttnn_sys {

struct ResourceUse;

// While one lives, no thread of the process allocates memory on a chip or runs anything there:
// TT-NN keeps its graph captures in one global place.
struct Query {
    std::shared_ptr<ttnn::graph::ScopedGraphCapture> capture;
};

std::unique_ptr<Query> begin_query();
ResourceUse end_query(const Query& query, const Mesh& mesh, const Tensor& output);

}  // namespace ttnn_sys
