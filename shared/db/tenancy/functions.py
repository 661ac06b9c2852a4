"""The SQL functions that a user's session may call: those named here, and those that the application adds.

A list of the forbidden is never complete: PostgreSQL alone brings some 3,000 functions, extensions bring more, and some
show other sessions' statements, read files, set sequences back or end connections. What is listed computes from its
arguments and does nothing else.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy.sql.elements import ClauseElement

from shared.db import column_types
from shared.db.errors import InvalidValueError

_NAME = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)*")

# Aggregates, windows, choice, text, numbers, time, documents, arrays, ranges, search, samples, keys; of both databases.
_ORDINARY: Final = """
    aggregate_strings any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp
    every group_concat grouping json_agg json_group_array json_group_object json_object_agg jsonb_agg
    jsonb_group_array jsonb_group_object jsonb_object_agg max median min mode percentile percentile_cont percentile_disc
    range_agg range_intersect_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy
    regr_syy stddev stddev_pop stddev_samp string_agg sum total var_pop var_samp variance

    cube grouping_sets rollup

    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number

    coalesce distinct greatest iif ifnull least nullif num_nonnulls num_nulls typeof pg_typeof

    ascii bit_length btrim char char_length character_length chr concat concat_ws convert_from convert_to decode encode
    format glob hex initcap instr left length like likelihood likely lower lpad ltrim md5 normalize octet_length overlay
    position printf quote quote_ident quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right
    rpad rtrim sha224 sha256 sha384 sha512 soundex split_part starts_with string_to_array string_to_table strpos substr
    substring to_ascii to_hex translate trim unhex unicode unistr unlikely upper

    abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh cot cotd degrees
    div erf erfc exp factorial floor gcd lcm ln log log10 log2 min_scale mod pi pow power radians random round scale
    sign sin sind sinh sqrt tan tand tanh trim_scale trunc width_bucket

    age clock_timestamp current_date current_time current_timestamp date date_add date_bin date_part date_subtract
    date_trunc datetime extract isfinite julianday justify_days justify_hours justify_interval localtime localtimestamp
    make_date make_interval make_time make_timestamp make_timestamptz now statement_timestamp strftime time timediff
    timezone to_char to_date to_number to_timestamp transaction_timestamp unixepoch

    array_to_json json json_array json_array_elements json_array_elements_text json_array_insert json_array_length
    json_build_array json_build_object json_each json_each_text json_error_position json_extract json_extract_path
    json_extract_path_text json_insert json_object json_object_keys json_patch json_populate_record
    json_populate_recordset json_pretty json_quote json_remove json_replace json_set json_strip_nulls json_to_record
    json_to_recordset json_tree json_type json_typeof json_valid jsonb jsonb_array jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_contains jsonb_each
    jsonb_each_text jsonb_exists jsonb_extract jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
    jsonb_object_keys jsonb_patch jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_remove jsonb_replace
    jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_tree jsonb_typeof row_to_json
    to_json to_jsonb

    array array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_string array_upper cardinality trim_array unnest
    generate_series generate_subscripts

    daterange int4multirange int4range int8multirange int8range isempty lower_inc lower_inf multirange numrange
    nummultirange range_merge tsrange tstzrange tsmultirange tstzmultirange upper_inc upper_inf

    phraseto_tsquery plainto_tsquery setweight to_tsquery to_tsvector ts_headline ts_rank ts_rank_cd
    websearch_to_tsquery

    bernoulli gen_random_uuid system uuidv4 uuidv7 uuid_generate_v4
"""

# What the library itself writes out by functions of its own. SQLAlchemy keeps those with their class.
_CONSTRUCTS: set[type[Any]] = {
    column_types.exact_sum,
    column_types.holds,
    column_types.new_uuid,
    column_types.utc_now,
}
_ALLOWED: set[str] = set(_ORDINARY.split())


def allow_functions(*functions: str | type[ClauseElement]) -> None:
    """Let users' sessions, and those under `require_tenant`, use more SQL functions, in this process from now on.

    Takes names as in `func.NAME` ("similarity", "public.my_rank"; case does not count), and classes with a `@compiles`
    function of their own. Without PostgreSQL's policies nothing else sees to what they do: add only what computes from
    its arguments, and no function that reads a table, runs SQL that it is given, or changes anything. Raises
    `InvalidValueError` for what is neither.
    """
    for function in functions:
        if isinstance(function, type) and issubclass(function, ClauseElement):
            continue
        if not isinstance(function, str) or not _NAME.fullmatch(function.lower()):
            raise InvalidValueError(
                f"{function!r} is neither the name of an SQL function nor a class of SQL constructs"
            )
    _ALLOWED.update(function.lower() for function in functions if isinstance(function, str))
    _CONSTRUCTS.update(function for function in functions if isinstance(function, type))


def is_allowed(function: Any) -> bool:
    """Whether this function may be called, by the name that is written."""
    name = ".".join(str.__str__(part) for part in (*function.packagenames, function.name)).lower()
    return name.removeprefix("pg_catalog.") in _ALLOWED


def writes_its_own_text(element: Any) -> bool:
    """Whether an element of a statement is written by a `@compiles` function that nobody allowed."""
    for kind in type(element).__mro__:
        if "_compiler_dispatcher" in vars(kind):
            return kind not in _CONSTRUCTS
    return False
