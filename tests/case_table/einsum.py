from tests.cases import Case, normal


def case(name: str, equation: str, *shapes: tuple[int, ...]) -> Case:
    return Case(f"einsum-{name}", lambda t, *x: t.einsum(equation, *x), [normal(*shape) for shape in shapes])


CASES = [
    case("matmul", "ij,jk->ik", (3, 4), (4, 5)),
    case("implicit", "ij,jk", (3, 4), (4, 5)),
    case("implicit-order", "ba", (3, 4)),
    case("scores", "bhtd,bhsd->bhts", (2, 2, 3, 4), (2, 2, 5, 4)),
    case("three", "ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    case("outer", "i,j->ij", (3,), (4,)),
    case("dot", "i,i->", (4,), (4,)),
    case("dots-in-a-batch", "bi,bi->b", (3, 4), (3, 4)),
    case("batch-last", "ijb,jkb->ikb", (3, 4, 2), (4, 5, 2)),
    case("several-of-each-kind", "abijxy,xbkay->kbaji", (2, 3, 2, 3, 4, 2), (4, 3, 5, 2, 2)),
    case("bilinear", "bi,oij,bj->bo", (3, 4), (2, 4, 5), (3, 5)),
    case("four", "ij,kl,jk,lm->mi", (2, 3), (4, 5), (3, 4), (5, 2)),
    case("numbers", ",i,->i", (), (3,), ()),
    case("transpose", "ij->ji", (3, 4)),
    case("sum-of-one", "ij->i", (3, 4)),
    case("sum-of-all", "ij->", (3, 4)),
    case("trace", "ii->", (4, 4)),
    case("diagonal", "ii->i", (4, 4)),
    case("diagonal-3", "iij,j->i", (3, 3, 2), (2,)),
    case("diagonal-of-three-axes", "iii,i->i", (3, 3, 3), (3,)),
    case("two-diagonals", "iijj->ij", (3, 3, 2, 2)),
    case("diagonal-summed", "ii,jk->k", (3, 3), (2, 4)),
    case("index-of-one-operand", "ij,k->i", (3, 4), (5,)),
    case("dots", "...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
    case("dots-broadcast", "...ij,jk->...ik", (2, 6, 3, 4), (4, 5)),
    case("dots-of-different-length", "...i,...i->...", (2, 3, 4), (3, 4)),
    case("length-1-axis", "ij,ij->ij", (3, 1), (3, 4)),
    case("length-1-summed", "ij,jk->ik", (3, 1), (4, 5)),
    case("length-1-of-one-operand", "ij,k->j", (1, 4), (5,)),
    case("length-1-in-a-batch", "bij,bjk->bik", (1, 3, 4), (2, 4, 5)),
    case("empty", "ij,jk->ik", (3, 0), (0, 5)),
    case("empty-batch", "bij,bjk->bik", (0, 3, 4), (0, 4, 5)),
    case("empty-against-length-1", "ij,ij->ij", (3, 1), (3, 0)),
]
