// The CPU side of embedding, as its dispatcher sees it. Tokens have been checked.
#pragma once

#include "kernels/embedding/embedding.h"

namespace sluice::cpu {

template <class T>
void embedding_forward(const EmbeddingForward& args);

template <class T>
void embedding_backward(const EmbeddingBackward& args);

}  // namespace sluice::cpu
